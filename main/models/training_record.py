"""`training.json`: how an adapter was trained, beside its weights and in what is merged from it.

Prediction follows it (plain text or chat template, the template's variables) and says what differs.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from main.system.masking import MASK, masked, names_secret

log = logging.getLogger(__name__)

FILE = "training.json"
SAMPLES = 64  # values of each tensor that go into a base's digest
# What a configuration says of where it lies and how it is computed, not of the model.
INCIDENTAL = ("dtype", "torch_dtype", "transformers_version", "quantization_config", "use_cache")


@dataclass
class TrainingRecord:
    """The content of the file.

    library: version that trained it; method: e.g. 'lora.Trainer'.
    base, base_digest: the base model's folder or name, and `model_digest` of it.
    loader: the row format; plain_text: whether rows were trained without a chat template.
    template_digest: of the chat template; template_kwargs: the variables that it was given;
    template_date: what it wrote for today's date, '' if it writes none.
    data: split -> digest of its file.
    reference: what the policy was held against, in words; '' for methods without one.
    setup, call: arguments of constructor and call.
    """

    library: str = ""
    method: str = ""
    base: str = ""
    base_digest: str = ""
    loader: str = ""
    plain_text: bool = False
    template_digest: str = ""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    template_date: str = ""
    data: dict[str, str] = field(default_factory=dict)
    reference: str = ""
    setup: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


_EMPTY = asdict(TrainingRecord())


def write_record(directory: Path, record: TrainingRecord) -> None:
    text = json.dumps(asdict(record), ensure_ascii=False, indent=1)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def read_record(folder: str | os.PathLike[str] | None) -> TrainingRecord | None:
    """None where there is none, as with adapters of other tools; a damaged one is told."""
    path = Path(folder or "").expanduser() / FILE
    if folder is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name: content[f.name] for f in fields(TrainingRecord) if f.name in content}
        wrong = [n for n, value in known.items() if type(value) is not type(_EMPTY[n])]
        if wrong:
            raise ValueError(f"'{wrong[0]}' is no {type(_EMPTY[wrong[0]]).__name__}")
    except (ValueError, TypeError, RecursionError) as error:
        log.warning("%s is damaged and not used: %s", path, error)
        return None
    return TrainingRecord(**known)


def plain(value: Any) -> Any:
    """A value as JSON keeps it, without secrets; of functions and models the name."""
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {str(k): _named(str(k), v) for k, v in value.items()}
    if isinstance(value, list | tuple) and value and all(map(_is_row, value)):
        return f"{len(value)} rows"
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    if isinstance(value, os.PathLike):
        return masked(str(value))
    return getattr(value, "__qualname__", type(value).__qualname__)


def _is_row(value: Any) -> bool:
    """Of rows given in memory, as opposed to the entries of a mixture."""
    return isinstance(value, Mapping) and "data" not in value


def arguments_of(options: Any) -> dict[str, Any]:
    """The fields of an options class; the objects in them are neither copied nor stored."""
    return {f.name: _named(f.name, getattr(options, f.name)) for f in fields(options)}


def _named(name: str, value: Any) -> Any:
    return MASK if names_secret(name) and value else plain(value)


def template_digest(tokenizer: Any) -> str:
    """Of the chat template; '' where there is none."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    return hashlib.sha256(str(template).encode()).hexdigest() if template else ""


def spread(size: int) -> list[int]:
    """At most SAMPLES places of a tensor of this size, its first and last among them."""
    count = min(SAMPLES, size)
    return [i * (size - 1) // max(count - 1, 1) for i in range(count)]


def configuration(model: Any) -> str:
    """What a model's configuration says of the model, as JSON."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in INCIDENTAL}
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    return json.dumps(config, sort_keys=True, default=str)


def spread_sample(tensor: Any) -> Any:
    """At most `SAMPLES` values of a tensor, the first and the last among them, evenly spread."""
    import torch

    flat = tensor.detach().flatten()
    # Integers: in float32 the last place of a tensor of more than 2^24 values would lie beyond it.
    return flat[torch.tensor(spread(len(flat)), dtype=torch.int64, device=flat.device)]


def model_digest(model: Any) -> str:
    """Of the configuration and, for each tensor, name, shape and a spread sample of its values.

    The values count as bfloat16 has them, so that the dtype that a model is loaded in does not.
    """
    import torch

    digest = hashlib.sha256(configuration(model).encode())
    for name, tensor in model.named_parameters():
        values = spread_sample(tensor).to(torch.bfloat16).view(torch.int16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
