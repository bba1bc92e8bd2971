"""What a model's folder may ask for beside tensors: refused before anything acts on it.

Code of its own is transformers' to refuse, as long as `trust_remote_code` is said to be False.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main.errors import ModelError
from main.system.pickles import Unreadable, check_plain
from main.system.settings import settings_in, shards

MOST_PARTS = 4096  # layers or experts: each is made, by name, before a weight is read
MOST_ROUNDS = 1000
_NITER = re.compile(r"pissa_niter_(\d{1,30})")
_COUNT = re.compile(r"(num|n)_\w*(layer|expert|block)s?|\w*_?layers|depth")


def check_config(config: Any, path: Any) -> None:
    """Of a folder's or the hub's, which strangers wrote.

    Raises:
        ModelError: an attention that is code of the hub, or parts without number.
    """
    for one in _with_parts(config):
        attention = vars(one).get("_attn_implementation_internal")
        if "/" in str(attention):
            raise ModelError(
                f"model '{path}' asks for the attention '{attention}', which is code of the hub. "
                "Take it out of its config.json; attn_implementation='sdpa' chooses another."
            )
        for name, value in vars(one).items():
            if _COUNT.fullmatch(name) and isinstance(value, int) and value > MOST_PARTS:
                raise ModelError(
                    f"model '{path}': {name}={value} in its config.json, and {MOST_PARTS} are the "
                    "most. Take that file from the original model."
                )


def check_weights(folder: Path | None, what: str) -> None:
    """Of a folder: all lie in it, and what is pickled is tensors alone.

    Raises:
        ModelError: reading them would run code, or they are damaged, or lie elsewhere.
    """
    if folder is None:
        return
    names = {name for index in sorted(folder.glob("*.index.json")) for name in shards(index)}
    if any(folder.glob("*.safetensors")):
        return  # pickled ones are not read
    files = {*folder.glob("pytorch_model*.bin"), *(folder / name for name in names)}
    for file in sorted(file for file in files if file.is_file()):
        try:
            check_plain(file)
        except Unreadable as error:
            raise ModelError(f"{what} '{folder}' is not loaded: {file.name} {error}.") from error


def check_modules(folder: Path) -> None:
    """Of a sentence encoder in sentence-transformers' form: its modules.json names classes.

    Raises:
        ModelError: one of somebody else's, or weights that would run code.
    """
    for module in _list(folder / "modules.json"):
        name = module.get("type") if isinstance(module, dict) else None
        if not str(name).startswith("sentence_transformers."):
            raise ModelError(
                f"sentence encoder '{folder}' asks for {name!r}, which is code of others: its "
                "modules.json may name classes of sentence_transformers alone."
            )
    check_weights(folder, "sentence encoder")


def check_adapter(settings: dict[str, Any], folder: Path) -> None:
    """Of an adapter_config.json, before peft acts on it.

    Raises:
        ModelError: it names adapters elsewhere, modules to import, or a start without end.
    """
    if settings.get("peft_type") == "XLORA":
        raise ModelError(
            f"adapter '{folder}' is X-LoRA, which loads the adapters that it names from anywhere; "
            "that is not built here. Give one of them."
        )
    if settings.get("megatron_config"):
        raise ModelError(
            f"adapter '{folder}' names modules of Megatron to import (megatron_config), whose "
            "layers no model here has. Take that entry out of its adapter_config.json."
        )
    rounds = _NITER.fullmatch(str(settings.get("init_lora_weights")))
    loftq = settings.get("loftq_config")
    counts = [rounds[1] if rounds else 0, loftq.get("loftq_iter") if loftq else 0]
    if any(int(count or 0) > MOST_ROUNDS for count in counts):
        raise ModelError(
            f"adapter '{folder}' begins with more than {MOST_ROUNDS} rounds of a decomposition "
            "(init_lora_weights, loftq_config), of which a few are usual."
        )


def check_ranks(config: Any, tensors: dict[str, Any], folder: Path) -> None:
    """Raise ModelError for ranks larger than any side of a tensor in the file."""
    ranks = [getattr(config, "r", None), *(getattr(config, "rank_pattern", None) or {}).values()]
    largest = max((max(t.shape, default=0) for t in tensors.values()), default=0)
    wrong = [rank for rank in ranks if isinstance(rank, int) and rank > largest]
    if wrong:
        raise ModelError(
            f"adapter '{folder}' is of rank {wrong[0]:,} by its adapter_config.json, and no side "
            f"of its tensors is longer than {largest:,}. The two files are not of one adapter."
        )


def _list(path: Path) -> list[Any]:
    if not path.is_file():
        return []
    found = settings_in(f'{{"modules": {path.read_text(encoding="utf-8")}}}', path)["modules"]
    if not isinstance(found, list):
        raise ModelError(f"{path} must hold a list; found {type(found).__name__}.")
    return found


def _with_parts(config: Any) -> Iterator[Any]:
    """A configuration, and those of its parts, such as a vision tower's."""
    yield config
    for value in vars(config).values():
        if hasattr(value, "model_type"):
            yield from _with_parts(value)
