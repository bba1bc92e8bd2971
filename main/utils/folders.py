"""Folders that stand under their name only when they are complete."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from main.errors import CheckpointError, MainError


def write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling, flush it to disk, then give it its name.

    Whatever fails, a directory that stood under the name before still stands.

    Raises:
        CheckpointError: the disk is full or not writable; nothing half-written is left.
        MainError: as `write` raised it; nothing is left either.
    """
    temporary, aside = hidden(final, "tmp"), hidden(final, "old")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()
        write(temporary)
        _flush(temporary)
        if final.exists():
            remove(aside)
            final.rename(aside)
        temporary.rename(final)
        _flush_folder(final.parent)
    except (OSError, RuntimeError) as error:
        if aside.exists() and not final.exists():
            aside.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, MainError):
            raise
        raise CheckpointError(
            f"{final} could not be written: {error}. What was written earlier is intact; "
            "free some space or choose another output folder."
        ) from error
    remove(aside)


def hidden(path: Path, kind: str) -> Path:
    """The sibling `.<name>.<kind>`; 'tmp' is unfinished, 'old' was set aside."""
    return path.with_name(f".{path.name}.{kind}")


def remove(path: Path) -> None:
    """Delete a directory if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _flush(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(directory)


def _flush_folder(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
