"""Merge an adapter into its base: one folder that transformers, vLLM and trl serve as they are.

    W' = W + sum_i w_i s_i B_i A_i                        (LoRA, arXiv 2106.09685, section 4.1)

A quantised base is dequantised first, and the sum is taken in float32. The folder gets its name
only after it was opened again and gave the adapted model's logits.

    python -m main.utils.merge_model BASE --peft_path ADAPTER --output DIR
    python -m main.utils.merge_model BASE --peft_path A B --weights 0.7 0.3 --output DIR
"""

import argparse
import gc
import json
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from main.dialogue.ends import stop_token_ids
from main.dialogue.prompts import encode
from main.errors import ConfigError, ModelError
from main.models import (
    has_tokenizer,
    load_adapter,
    load_config,
    load_model,
    load_tokenizer,
    read_adapter,
)
from main.models.combine import combine_adapters
from main.models.load import Quantization
from main.models.logits import largest_difference, prompt_logits, same_top
from main.models.merging import full_precision_base, merge
from main.models.training_record import TrainingRecord, read_record, write_record
from main.options import parse, shown
from main.predictor.request import build_prompts
from main.system.folders import write_directory
from main.utils.ollama import find_converter, modelfile_start, write_gguf, write_modelfile
from main.vision.processor import copy_settings

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Format = Literal["safetensors", "gguf", "ollama"]
REPORT = "merge_report.json"
LONGEST_PROMPT = 256  # tokens; the logits of all prompts are held at once
PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Write a Python function that adds two numbers.",
    "Translate into English: 今天的天气很好，我们去公园散步吧。",
    "请用一句话介绍北京。",
    "A train leaves at 9:40 and arrives at 11:05. How long does the journey take?",
    "List three fruits that are red.",
    "把下面的句子改写得更礼貌：你快点把文件发给我。",
    "Summarise in one sentence: The meeting was moved from Monday to Thursday because two of "
    "the five members were ill, and the room was needed for another purpose.",
)
# Largest difference of a logit that a sound merge may show; see tests/test_merge.py for what
# rounding the weights of the small real model costs.
TOLERANCES = {"float32": 0.01, "float16": 0.25, "bfloat16": 2.0}


@dataclass
class MergeOptions:
    """Arguments of `merge_model`.

    base: the base model's folder or hub name.
    peft_path (also resume_path): an adapter folder, or several.
    device: what merges and compares; by default a GPU where there is one.
    trust_remote_code: run code that lies in the base's folder.
    output: folder to write; refused when it exists, unless `overwrite`.
    weights: of the adapters, 1 each unless given.
    dtype: of the saved weights; 'auto' = as the base is stored.
    quantization: what the adapter was trained with. '4bit' and '8bit' merge into the weights that
        training saw, the base quantised and dequantised again; None merges into the base itself.
    format: 'gguf' adds model.gguf, 'ollama' a Modelfile (with model.gguf if llama.cpp is found).
    converter: llama.cpp's convert_hf_to_gguf.py, if it is not on PATH.
    max_shard_size: of one weight file.
    tolerance: largest difference of a logit, None = by dtype.
    prompts: texts to compare on instead of the built-in ones.
    """

    base: str | Path
    peft_path: str | Path | list | tuple
    output: str | Path
    weights: list | tuple | None = None
    dtype: Any = "auto"
    quantization: Quantization | None = None
    format: Format = "safetensors"
    converter: str | Path | None = None
    max_shard_size: str | int = "5GB"
    tolerance: float | None = None
    prompts: list | tuple = PROMPTS
    device: Any = None
    trust_remote_code: bool = False
    overwrite: bool = False

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if not self.adapters:
            found.append("peft_path is empty; give at least one adapter.")
        wrong = [path for path in self.adapters if not _is_path(path)]
        if wrong:
            found.append(f"peft_path has {shown(wrong[0])} in it, and must be a folder or several.")
        if self.weights is not None and len(self.weights) != len(self.adapters):
            found.append(
                f"{len(self.weights)} weights for {len(self.adapters)} adapters: give one for each."
            )
        if not self.prompts or not all(isinstance(p, str) and p for p in self.prompts):
            found.append("prompts must be texts that are not empty.")
        return found or self._output_problems()

    def _output_problems(self) -> list[str]:
        output = Path(self.output).resolve()
        sources = [Path(source).resolve() for source in (self.base, *self.adapters)]
        if any(output == source or output in source.parents for source in sources):
            return [f"output='{self.output}' is, or holds, what is merged. Choose another folder."]
        if not self.overwrite and os.path.exists(output) and not _is_empty_folder(output):
            return [f"output='{self.output}' exists already. Choose another or pass overwrite."]
        return []

    @property
    def adapters(self) -> list[Any]:
        """The adapter folders as a list."""
        given = self.peft_path
        return list(given) if isinstance(given, list | tuple) else [given]


class MergeReport(NamedTuple):
    """What was written and how near it is; differences are the largest of any logit.

    effect: between the base and the adapted model: what is to be kept.
    merged: between the adapted and the merged model, both in float32.
    saved: between the adapted model and the folder, opened again.
    same_top: share of positions at which the folder's likeliest token is the adapted model's.
    """

    output: Path
    dtype: str
    effect: float
    merged: float
    saved: float
    same_top: float


def merge_model(
    base: str | Path, peft_path: Any, output: str | Path, **options: Any
) -> MergeReport:
    """Write the merged model to `output`; the other arguments are those of `MergeOptions`.

    Raises:
        ConfigError: arguments that cannot work.
        ModelError: the merged model differs from the adapted one; nothing is written then.
        MissingFileError, MissingExtraError, DiskError: see `main.models`, `main.errors`.
    """
    given = {"base": base, "peft_path": peft_path, "output": output, **options}
    settings = parse(MergeOptions, given, "merge_model()", {"resume_path": "peft_path"})
    converter = find_converter(settings.converter, required=settings.format == "gguf")
    dtype = _dtype(settings)
    tokenizer = load_tokenizer(
        _tokenizer_folder(settings), trust_remote_code=settings.trust_remote_code
    )
    modelfile = modelfile_start(tokenizer) if settings.format == "ollama" else None
    record = read_record(settings.adapters[0])
    prompts = _prompt_ids(tokenizer, settings.prompts, record)
    merged = _merge(settings, prompts)
    _finish(merged.models[0], tokenizer, dtype)
    reports: list[MergeReport] = []

    def write(folder: Path) -> None:
        merged.models.pop().save_pretrained(folder, max_shard_size=settings.max_shard_size)
        tokenizer.save_pretrained(folder)
        copy_settings(str(settings.base), folder)
        if record is not None:
            write_record(folder, record)
        gc.collect()  # the model just written, before it is opened again
        report = _report(settings, merged, prompt_logits(_reopen(folder, settings), prompts), dtype)
        _refuse(report.saved, settings, report.dtype, f"saving in {report.dtype}")
        _write_report(folder, settings, report)
        if converter is not None and settings.format != "safetensors":
            write_gguf(converter, folder, report.dtype)
        if modelfile is not None:
            write_modelfile(folder, tokenizer, modelfile)
        reports.append(report)

    write_directory(Path(settings.output), write)
    return reports[0]


class Merged(NamedTuple):
    """The merged model, taken out of its list when it is saved, and what was seen on the way."""

    models: list[Any]
    expected: "list[torch.Tensor]"  # the adapted model's logits
    effect: float
    difference: float


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _merge(settings: MergeOptions, prompts: list[list[int]]) -> Merged:
    """Merge in float32, in place; the adapted model's logits are taken before."""
    for path in settings.adapters:
        read_adapter(path)  # what is wrong with it is said before the base takes minutes to load
    with _one_adapter(settings) as adapter:
        adapted = load_adapter(_base(settings), adapter)
    expected = prompt_logits(adapted, prompts)
    with adapted.disable_adapter():
        effect = largest_difference(expected, prompt_logits(adapted, prompts))
    tolerance = TOLERANCES["float32"] if settings.tolerance is None else settings.tolerance
    merged = merge(adapted, prompts, tolerance)
    if merged.problem:
        raise ModelError(
            f"{merged.problem}; nothing was written. Serve the adapter beside its base, or train "
            "it without what cannot be merged."
        )
    return Merged([merged.model], expected, effect, merged.difference)


def _report(
    settings: MergeOptions, merged: Merged, found: "list[torch.Tensor]", dtype: "torch.dtype"
) -> MergeReport:
    return MergeReport(
        Path(settings.output),
        str(dtype).removeprefix("torch."),
        merged.effect,
        merged.difference,
        largest_difference(merged.expected, found),
        same_top(merged.expected, found),
    )


def _dtype(settings: MergeOptions) -> "torch.dtype":
    """The dtype to save in; a quantised base is stored in what it computes with."""
    import torch

    dtype = settings.dtype
    if dtype == "auto":
        config = load_config(settings.base, trust_remote_code=settings.trust_remote_code)
        dtype = getattr(config, "dtype", None) or torch.float32
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(
            f"dtype={settings.dtype!r} must be 'auto', 'float32', 'bfloat16' or 'float16'."
        )
    return found


def _tokenizer_folder(settings: MergeOptions) -> Any:
    """The adapter's own tokenizer if it brings one: its chat template is what was trained."""
    own = [path for path in settings.adapters if has_tokenizer(path)]
    return own[0] if own else settings.base


def _prompt_ids(
    tokenizer: Any, prompts: Sequence[str], record: TrainingRecord | None
) -> list[list[int]]:
    """As the adapter is asked: through the chat template, unless it was trained without."""
    templated = bool(tokenizer.chat_template) and not (record and record.plain_text)
    variables = record.template_kwargs if record and templated else None
    built = build_prompts(
        tokenizer, list(prompts), build_message=templated, template_kwargs=variables
    )
    return [ids[:LONGEST_PROMPT] for ids in encode(tokenizer, built)]


@contextmanager
def _one_adapter(settings: MergeOptions) -> Iterator[Any]:
    """The only adapter, unchanged, or one made of all that are given."""
    weights = settings.weights or [1.0] * len(settings.adapters)
    if len(weights) == 1 and weights[0] == 1:
        yield settings.adapters[0]
        return
    with tempfile.TemporaryDirectory() as folder:
        combine_adapters(settings.adapters, weights, Path(folder))
        yield folder


def _base(settings: MergeOptions) -> Any:
    return full_precision_base(
        settings.base, settings.quantization, settings.device, settings.trust_remote_code
    )


def _finish(model: Any, tokenizer: Any, dtype: "torch.dtype") -> None:
    """Saved dtype, and the end tokens of the chat template where every server reads them."""
    ends = stop_token_ids(model, tokenizer)
    model.to(dtype)
    _mend_sampling(model.generation_config)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _mend_sampling(config: Any) -> None:
    """Unset what a greedy configuration says of sampling: transformers would not save it."""
    names = ("temperature", "top_p", "top_k", "min_p", "typical_p")
    unused = [n for n in names if config.do_sample is False and getattr(config, n) is not None]
    for name in unused:
        setattr(config, name, None)
    if unused:
        log.warning(
            "generation_config.json says do_sample=false: left out, as without effect: %s.",
            ", ".join(unused),
        )


def _reopen(folder: Path, settings: MergeOptions) -> Any:
    """The folder as it will be served, its rounded weights computed with in float32."""
    return load_model(
        folder,
        dtype="float32",
        device=settings.device,
        trust_remote_code=settings.trust_remote_code,
    )


def _refuse(difference: float, settings: MergeOptions, dtype: str, step: str) -> None:
    tolerance = TOLERANCES[dtype] if settings.tolerance is None else settings.tolerance
    if not difference <= tolerance:
        raise ModelError(
            f"{step} changed a logit by {difference:.3g}, more than the tolerance of "
            f"{tolerance:g}; nothing was written. Save in float32, or raise tolerance if that is "
            "near enough."
        )


def _write_report(folder: Path, settings: MergeOptions, report: MergeReport) -> None:
    content = {
        "base": str(settings.base),
        "adapters": [str(path) for path in settings.adapters],
        "weights": list(settings.weights or [1.0] * len(settings.adapters)),
        "quantization": settings.quantization,
        **{k: v for k, v in report._asdict().items() if k != "output"},
    }
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (folder / REPORT).write_text(text + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.merge_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("base", help="folder of the base model, or its name on the hub")
    parser.add_argument("--peft_path", nargs="+", required=True, help="one adapter or several")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--weights", nargs="+", type=float, help="of the adapters; 1 each")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; as the base is stored")
    parser.add_argument("--quantization", choices=["4bit", "8bit"], help="as in QLoRA training")
    parser.add_argument("--format", choices=["safetensors", "gguf", "ollama"])
    parser.add_argument("--converter", help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--max_shard_size", help="of one weight file; 5GB")
    parser.add_argument("--tolerance", type=float, help="largest difference of a logit")
    parser.add_argument("--prompts", nargs="+", help="texts to compare on")
    parser.add_argument("--device")
    parser.add_argument("--trust_remote_code", action="store_true", default=None)
    parser.add_argument("--overwrite", action="store_true", default=None)
    return parser


def told_report(report: MergeReport) -> str:
    """What the commands print."""
    lines = [
        f"merged into {report.output} ({report.dtype})",
        f"  the adapter changes a logit by up to     {report.effect:.4g}",
        f"  merged in float32, against the adapter   {report.merged:.2g}",
        f"  the saved folder, opened again           {report.saved:.2g}",
        f"  same likeliest token                     {report.same_top:.2%} of positions",
    ]
    if report.saved > report.effect / 2:
        lines.append("Rounding changes as much as the adapter does: use --dtype float32.")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    given = vars(_parser().parse_args(arguments))
    report = merge_model(**{name: value for name, value in given.items() if value is not None})
    print(told_report(report))


if __name__ == "__main__":
    main()
