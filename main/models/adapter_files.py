"""The files of an adapter: configuration and weights."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import MissingFileError, ModelError
from main.models.folder import clear_errors
from main.models.harmless import check_adapter
from main.system.pickles import Unreadable, load_plain
from main.system.settings import read_settings

if TYPE_CHECKING:
    import torch

WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"


def read_adapter(path: str | os.PathLike[str]) -> "tuple[Any, dict[str, torch.Tensor]]":
    """Configuration and tensors of an adapter folder, as its files have them.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
        ModelError: damaged weights.
    """
    return adapter_config(path), _read(adapter_folder(path))


def adapter_config(path: str | os.PathLike[str]) -> Any:
    """peft's configuration of the adapter in folder `path`.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
        ModelError: what is no configuration, or asks for code of others.
    """
    from peft import PeftConfig

    folder = adapter_folder(path)
    with clear_errors("adapter", folder):
        check_adapter(read_settings(folder / CONFIG), folder)
        return PeftConfig.from_pretrained(str(folder))


def adapter_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            f"adapter folder '{path}' does not exist (looked for {folder.absolute()})."
        )
    if not (folder / CONFIG).is_file():
        raise MissingFileError(
            f"folder '{path}' has no {CONFIG}, so it is no adapter; found "
            f"{', '.join(sorted(entry.name for entry in folder.iterdir())[:10]) or 'nothing'}."
        )
    return folder


def _read(folder: Path) -> "dict[str, torch.Tensor]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (folder / WEIGHTS).is_file():
            return load_file(folder / WEIGHTS)
        if (folder / OLD_WEIGHTS).is_file():
            return load_plain(folder / OLD_WEIGHTS)
    except Unreadable as error:
        raise ModelError(f"{folder / OLD_WEIGHTS} is not loaded: it {error}.") from error
    except SafetensorError as error:
        raise ModelError(f"the adapter weights in '{folder}' are damaged: {error}") from error
    raise MissingFileError(f"adapter '{folder}' has no weights: looked for {WEIGHTS}.")


def write_adapter(directory: Path, config: Any, tensors: "dict[str, torch.Tensor]") -> None:
    """Configuration and tensors as files in `directory`, which is made when it does not exist."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses two names for one storage
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(directory))
