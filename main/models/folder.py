"""The folder of a model, and clear errors where something in it is missing or broken."""

import os
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from main.errors import MainError, MissingFileError, ModelError


def local_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder that `path` names; None for what can only be a name on the hub.

    Raises:
        MissingFileError: a path that is not a hub name and does not exist, or is a file.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MissingFileError(f"'{path}' is a file; a model is a folder with a config.json.")
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path)):
        return None
    raise MissingFileError(
        f"model folder '{path}' does not exist (looked for {folder.absolute()})."
    )


def has_any(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def nothing_found(what: str, folder: Path, patterns: tuple[str, ...]) -> MissingFileError:
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return MissingFileError(
        f"folder '{folder}' holds no {what}: looked for {', '.join(patterns)}; "
        f"found {shown or 'an empty folder'}."
    )


# What files that are not what they should be make libraries raise.
_OF_FILES = (OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError)


class clear_errors:
    """Turn what transformers raises while loading into one of our errors that names the path."""

    def __init__(self, what: str, path: str | os.PathLike[str]):
        self.what, self.path = what, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        import torch
        from safetensors import SafetensorError

        if error is None or isinstance(error, MainError | torch.OutOfMemoryError):
            return
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{self.what} '{self.path}' runs Python code that it brings along. If you trust "
                "it, pass trust_remote_code=True."
            ) from error
        if local_folder(self.path) is None and isinstance(error, OSError):
            raise MissingFileError(
                f"{self.what} '{self.path}' is neither a folder (looked for "
                f"{Path(self.path).absolute()}) nor could it be had from the hub: {first}"
            ) from error
        if isinstance(error, UnpicklingError):  # its own words advise to read it with code and all
            raise ModelError(
                f"{self.what} '{self.path}' is not loaded: its weights hold more than tensors."
            ) from None
        if isinstance(error, (*_OF_FILES, SafetensorError)):
            raise ModelError(f"{self.what} '{self.path}' cannot be loaded: {first}") from error
