"""`main-peft describe`: what a model, an adapter or a checkpoint is, without loading weights."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main.cli.arguments import Arguments, Part, tell
from main.cli.screens import wrapped
from main.errors import DataError, MainError
from main.models import load_config, load_tokenizer
from main.models.adapter_files import CONFIG, WEIGHTS
from main.models.folder import local_folder
from main.models.training_record import TrainingRecord, read_record
from main.options import parse


@dataclass(kw_only=True)
class DescribeOptions:
    """What is described.

    folder: of a model, an adapter or a checkpoint; a model's name on the hub.
    trust_remote_code: run code that lies in the model's folder.
    """

    folder: str
    trust_remote_code: bool = False


def arguments() -> Arguments:
    return Arguments(
        "main-peft describe",
        "Say what a folder is: family, size, adapter, training, chat template.",
        [Part(DescribeOptions, {"model": "folder", "peft_path": "folder"})],
        positional="folder",
    )


def run(words: list[str]) -> None:
    given = arguments().parse(words)
    tell(description(parse(DescribeOptions, given.parts[0], "describe")))


def description(options: DescribeOptions) -> str:
    """What `describe` prints.

    Raises:
        MissingFileError, ModelError: no such folder, or one that is neither.
    """
    folder = local_folder(options.folder)
    is_adapter = folder is not None and (folder / CONFIG).is_file()
    record = read_record(options.folder)
    lines = [str(options.folder)]
    if is_adapter and folder is not None:
        lines += _section("adapter", _adapter(folder))
    if record is not None:
        lines += _section("training (training.json)", training(record))
    base = (record.base if record else "") if is_adapter else options.folder
    if is_adapter and not base:
        base = str(_json(Path(folder or ""), CONFIG).get("base_model_name_or_path") or "")
    try:
        config = load_config(base, trust_remote_code=options.trust_remote_code)
    except MainError as error:
        if not is_adapter:
            raise
        return "\n".join([*lines, wrapped(f"base: cannot be opened: {error}")])
    lines += _section(f"base {base}" if is_adapter else "model", _model(base, config))
    own = folder if is_adapter and folder and (folder / "tokenizer_config.json").is_file() else base
    lines += _section("chat template", _template(own, options.trust_remote_code))
    if not is_adapter:
        lines += _section("target_modules='all-linear' would train", _targets(base, config))
    return "\n".join(lines)


def _section(title: str, facts: Iterator[str]) -> list[str]:
    found = [wrapped(f"  {fact}").replace("\n  ", "\n    ") for fact in facts]
    return ["", f"{title}:", *found] if found else []


def _model(base: Any, config: Any) -> Iterator[str]:
    from main.models import context_length, family

    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    classes = getattr(config, "architectures", None) or ["?"]
    yield f"family {family(config)} ({classes[0]}, model_type {config.model_type})"
    shape = {"layers": "num_hidden_layers", "hidden": "hidden_size", "vocabulary": "vocab_size"}
    sizes = [f"{word} {getattr(text, name)}" for word, name in shape.items() if hasattr(text, name)]
    yield ", ".join([*sizes, f"context {context_length(config) or 'without limit'}"])
    counts = _tensors(local_folder(base))
    if counts:
        total = sum(counts.values())
        kinds = ", ".join(sorted(counts))
        yield f"{_short(total)} parameters, stored as {kinds}, {_bytes(counts)} on disk"
    if getattr(config, "quantization_config", None):
        yield "quantised already: train adapters on it as it is (QLoRA)"
    if hasattr(config, "vision_config"):
        yield "reads images"


_WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1}


def _tensors(folder: Path | None) -> dict[str, int]:
    """dtype -> number of values, of the headers of the safetensors files."""
    from safetensors import safe_open

    counts: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                part = file.get_slice(name)
                size = 1
                for length in part.get_shape():
                    size *= length
                counts[part.get_dtype()] = counts.get(part.get_dtype(), 0) + size
    return counts


def _bytes(counts: dict[str, int]) -> str:
    size = float(sum(number * _WIDTHS.get(kind, 1) for kind, number in counts.items()))
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _short(number: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        read = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _adapter(folder: Path) -> Iterator[str]:
    config = _json(folder, CONFIG)
    kinds = [name for name in ("use_dora", "use_rslora") if config.get(name)]
    yield (
        f"{config.get('peft_type', '?')} of rank {config.get('r', '?')}, alpha "
        f"{config.get('lora_alpha', '?')}, dropout {config.get('lora_dropout', 0)}"
        + "".join(f", {name}" for name in kinds)
    )
    layers = config.get("target_modules") or []
    yield f"on {layers if isinstance(layers, str) else ', '.join(sorted(layers)) or 'no layer'}"
    ranks = config.get("rank_pattern") or {}
    for name in config.get("target_parameters") or []:
        yield f"on the experts {name}, rank {ranks.get(name, config.get('r'))} each"
    if config.get("modules_to_save"):
        yield f"trained whole: {', '.join(config['modules_to_save'])}"
    if (folder / WEIGHTS).is_file():
        counts = _tensors(folder)
        yield f"{_short(sum(counts.values()))} parameters, {_bytes(counts)} on disk"
    if (folder / "trainer_state").is_dir():
        yield "a checkpoint: resume_from_checkpoint goes on from it exactly"
    yield f"belongs to {config.get('base_model_name_or_path')}"


def training(record: TrainingRecord) -> Iterator[str]:
    """A record in words: method, data, and the arguments that are no defaults."""
    from main.cli.train import METHODS, arguments

    method = record.method.partition(".")[0]
    yield f"by {record.method} of main-peft {record.library}, from the base {record.base}"
    rows = "plain text, without a chat template" if record.plain_text else "through the template"
    yield f"on {record.loader} rows, {rows}; splits {', '.join(record.data) or 'unknown'}"
    if record.template_kwargs:
        yield f"template variables {record.template_kwargs}"
    if record.template_date:
        yield f"the template's date was {record.template_date}"
    if record.reference:
        yield f"held against {record.reference}"
    said = {**record.setup, **record.call}
    known = arguments(method).options if method in METHODS else {}
    usual = {name: option.default for name, option in known.items()}
    chosen = {
        name: value
        for name, value in said.items()
        if value not in (None, {}, []) and (name not in usual or not _same(value, usual[name]))
        if name not in ("from_pretrained", "loader_name")
    }
    if chosen:
        yield "with " + ", ".join(f"{name}={value!r}" for name, value in chosen.items())


def _same(value: Any, default: Any) -> bool:
    return value == (list(default) if isinstance(default, tuple) else default)


def _template(folder: Any, trust_remote_code: bool) -> Iterator[str]:
    from main.dialogue.renderer import renderer_of

    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    if not tokenizer.chat_template:
        yield "none: train and ask it with plain text (loader_name LLM_Pure)"
        return
    renderer = renderer_of(tokenizer)
    yield f"system turn: {_system(renderer)}"
    style = renderer.thought_style
    told = {"": "not written", "inline": "as <think>...</think> in the answer"}
    yield f"thoughts: {told.get(style, f'in the field {style}')}"
    yield f"tools: {f'written; {_calls(renderer)}' if renderer.writes_tools else 'not written'}"
    variables = sorted(renderer.variable_names() - {"tools", "documents"})
    if variables:
        yield f"variables: {', '.join(variables)}"
    if "strftime_now" in renderer.names:
        yield "writes the day's date"


def _system(renderer: Any) -> str:
    system, user = {"role": "system", "content": "kudu"}, {"role": "user", "content": "a"}
    try:
        written = "kudu" in renderer.render([system, user], True)
    except DataError:
        return "refused by the template"
    return "written" if written else "not written"


def _calls(renderer: Any) -> str:
    from main.dialogue.calls import format_of

    try:
        format_of(renderer)
    except MainError:
        return "how it calls them is not known"
    return "its calls are read"


def _targets(base: Any, config: Any) -> Iterator[str]:
    """Measured on a model without weights."""
    import torch
    from peft import get_peft_model

    from main.models.families import auto_class, original_of
    from main.models.lora import LoraOptions, describe_targets, peft_config

    original = original_of(local_folder(base))
    with torch.device("meta"):
        made = (
            original.model_class()(config) if original else auto_class(config).from_config(config)
        )
        chosen = peft_config(made, LoraOptions())
        yield describe_targets(chosen, get_peft_model(made, chosen))
