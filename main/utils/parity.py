"""Does a model answer alike in the HF predictor, merged and in vLLM? One table and a verdict.

    python -m main.utils.parity BASE --peft_path ADAPTER --data data/ticket_en_dev.jsonl
    python -m main.utils.parity BASE --peft_path ADAPTER --merged DIR      # a folder that stands
    python -m main.utils.parity MODEL --merged OTHER                       # any two models

Greedy answers to the same requests; the first line, HF with the adapter beside the base, is what
the others are held against. Exit status 1 where one of them differs by more than ties.
"""

import argparse
import gc
import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prettytable import PrettyTable

from main.evaluation.items import Item, items_of, read_items
from main.models import load_config
from main.options import parse
from main.predictor import hf
from main.predictor.request import build_prompts
from main.utils.compare import Comparison, Side, compare, stop_reasons
from main.utils.merge_model import PROMPTS, merge_model


@dataclass
class ParityOptions:
    """Arguments of `parity`.

    model: folder of the base model; peft_path (also resume_path): an adapter on it.
    merged: a merged folder to check; by default one is made of model and adapter, in a temporary
        folder, and removed.
    merged_dtype: of the folder that is made; 'auto' = as the base is stored.
    data: a file in any format of the library, of which `limit` rows are asked.
    max_new_tokens: tokens of an answer.
    dtype, device: what every backend computes in, and where.
    trust_remote_code: run code that lies in the model's folder.
    vllm: True asks vLLM too, None = if it is installed; vllm_options go to its engine.
    """

    model: str | Path
    peft_path: str | Path | None = None
    merged: str | Path | None = None
    merged_dtype: Any = "auto"
    data: str | Path | None = None
    limit: int = 50
    max_new_tokens: int = 64
    dtype: str = "float32"
    device: Any = None
    vllm: bool | None = None
    vllm_options: dict | None = None
    trust_remote_code: bool = False

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        counts = {"limit": self.limit, "max_new_tokens": self.max_new_tokens}
        return [f"{name}={value} must be >= 1." for name, value in counts.items() if value < 1]


@dataclass
class ParityReport:
    """The first backend, the others against it, and the table as text."""

    first: Side
    comparisons: list[Comparison]
    table: str

    @property
    def equal(self) -> bool:
        """Whether every backend answers as the first, ties apart."""
        return all(comparison.equal for comparison in self.comparisons)


def parity(model: str | Path, peft_path: str | Path | None = None, **options: Any) -> ParityReport:
    """Ask every backend the same and compare; arguments as in `ParityOptions`.

    Raises:
        ConfigError, DataError, MissingFileError, ModelError: as predictors and merging do.
    """
    given = {"model": model, "peft_path": peft_path, **options}
    settings = parse(ParityOptions, given, "parity()", {"resume_path": "peft_path"})
    items = items_of([{"query": prompt} for prompt in PROMPTS])
    if settings.data is not None:
        items = read_items(settings.data)
    items = items[: settings.limit]
    reference = _hf(settings, settings.model, settings.peft_path)
    first = _side("hf", _dtype(settings, settings.model), reference, items, settings)

    def gap(row: int, before: Sequence[int], own: int, others: int) -> float:
        return _gap(reference, [*_prompt_ids(reference, items[row]), *before], own, others)

    sides = _others(settings, items)
    comparisons = [compare(first, side, gap) for side in sides]
    return ParityReport(first, comparisons, _table(first, comparisons, reference.tokenizer))


def _others(settings: ParityOptions, items: list[Item]) -> Iterator[Side]:
    """The backends beside the first, one at a time in memory."""
    with ExitStack() as stack:
        folder = settings.merged
        if folder is None and settings.peft_path is not None:
            temporary = stack.enter_context(tempfile.TemporaryDirectory())
            folder = _merge(settings, Path(temporary) / "merged")
        if folder is not None:
            name = f"merged ({_dtype(settings, folder)})"
            predictor = _hf(settings, folder, None)
            yield _side(name, _dtype(settings, folder), predictor, items, settings)
            del predictor
            gc.collect()
    installed = importlib.util.find_spec("vllm") is not None
    if settings.vllm or (settings.vllm is None and installed):
        yield _vllm_side(settings, items)


def _merge(settings: ParityOptions, folder: Path) -> Path:
    merge_model(
        settings.model,
        settings.peft_path,
        folder,
        dtype=settings.merged_dtype,
        device=settings.device,
        tolerance=sys.float_info.max,  # differences are what this report is for
        trust_remote_code=settings.trust_remote_code,
    )
    return folder


def _hf(settings: ParityOptions, model: Any, peft_path: Any) -> hf.Predictor:
    return hf.Predictor(
        model,
        peft_path=peft_path,
        dtype=settings.dtype,
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )


def _vllm_side(settings: ParityOptions, items: list[Item]) -> Side:
    from main.predictor.vllm import Predictor

    with Predictor(
        settings.model,
        peft_path=settings.peft_path,
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
        **(settings.vllm_options or {}),
    ) as predictor:
        return _side("vllm", _dtype(settings, settings.model), predictor, items, settings)


def _side(name: str, dtype: str, predictor: Any, items: list[Item], settings: Any) -> Side:
    answers = predictor.predict_with_logprobs(
        [item.query for item in items],
        [item.history for item in items],
        max_new_tokens=settings.max_new_tokens,
    )
    texts = _prompts(predictor, items)
    return Side(name, dtype, texts, frozenset(predictor.stop_ids), answers)


def _prompts(predictor: Any, items: list[Item]) -> list[str]:
    histories = [item.history for item in items]
    record = predictor.voice.trained.record
    return build_prompts(
        predictor.tokenizer,
        [item.query for item in items],
        histories,
        build_message=not record.plain_text,
        template_kwargs=None if record.plain_text else record.template_kwargs,
    ).texts


def _prompt_ids(predictor: Any, item: Item) -> list[int]:
    return predictor.tokenizer(_prompts(predictor, [item])[0], add_special_tokens=False)[
        "input_ids"
    ]


def _gap(predictor: hf.Predictor, ids: list[int], own: int, others: int) -> float:
    """Nats between two next tokens after `ids`."""
    import torch

    with torch.no_grad():
        inputs = torch.tensor([ids], device=predictor.model.device)
        logits = predictor.model(input_ids=inputs).logits[0, -1].float()
    return float(logits[own] - logits[others])


def _dtype(settings: ParityOptions, folder: Any) -> str:
    """The dtype that weights are stored in, or computed in where that rounds more."""
    if settings.dtype not in ("float32", "auto"):
        return settings.dtype
    config = load_config(folder, trust_remote_code=settings.trust_remote_code)
    return str(getattr(config, "dtype", None) or "float32").removeprefix("torch.")


def _table(first: Side, comparisons: list[Comparison], tokenizer: Any) -> str:
    table = PrettyTable(
        ["", "same answers", "first difference", "log-prob: mean, largest", "same prompts", "stops"]
    )
    table.align = "l"
    table.add_row([first.name, "", "", "", "", stop_reasons(first)])
    for c in comparisons:
        gaps = f"{c.mean:.1e}, {c.largest:.1e}"
        shares = f"{c.same:.1%}", _first_split(c, tokenizer), gaps, f"{c.same_prompts:.1%}"
        table.add_row([c.name, *shares, c.stop_reasons])
    verdicts = [f"{c.name}: {'OK' if c.equal else 'DIFFERS'}: {c.cause}" for c in comparisons]
    return "\n".join([table.get_string(), *verdicts])


def _first_split(comparison: Comparison, tokenizer: Any) -> str:
    """The earliest token at which any answer parts."""
    if not comparison.splits:
        return "none"
    split = min(comparison.splits, key=lambda s: s.token)
    one, two = ("end" if t is None else repr(tokenizer.decode([t])) for t in split.tokens)
    gap = "" if split.gap is None else f", gap {split.gap:.1e}"
    return f"row {split.row}, token {split.token}: {one} / {two}{gap}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.parity", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("model", help="folder of the base model, or its name on the hub")
    parser.add_argument("--peft_path", help="an adapter on it")
    parser.add_argument("--merged", help="a merged folder to check; one is made otherwise")
    parser.add_argument("--merged_dtype", help="of the folder that is made; as the base is stored")
    parser.add_argument("--data", help="a data file; a few built-in questions otherwise")
    parser.add_argument("--limit", type=int, help="rows of it; 50")
    parser.add_argument("--max_new_tokens", type=int)
    parser.add_argument("--dtype", help="that all compute in; float32")
    parser.add_argument("--device")
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, help="if installed")
    parser.add_argument("--trust_remote_code", action="store_true", default=None)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    given = vars(_parser().parse_args(arguments))
    report = parity(**{name: value for name, value in given.items() if value is not None})
    print(report.table)
    return 0 if report.equal else 1


if __name__ == "__main__":
    sys.exit(main())
