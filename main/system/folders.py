"""Folders that stand under their name only when they are complete; and where the cache is."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from main.errors import MainError
from main.system.disk import disk_error, flush, told


def write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling, flush it to disk, then give it its name.

    Whatever fails, a directory that stood under the name before still stands. Of a link the name
    alone is taken; what it leads to is left as it is.

    Raises:
        DiskError: the disk is full or not writable; nothing half-written is left.
        MainError: as `write` raised it; nothing is left either.
    """
    temporary, aside = hidden(final, "tmp"), hidden(final, "old")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        temporary.mkdir()
        write(temporary)
        _flush_all(temporary)
        if os.path.lexists(final):
            remove(aside)
            final.rename(aside)
        temporary.rename(final)
        flush(final.parent)
    except Exception as error:  # writers in Rust and C++ raise classes of their own
        if os.path.lexists(aside) and not os.path.lexists(final):
            aside.rename(final)
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, MainError):
            raise
        raise disk_error(final, error) from error
    with suppress(OSError):  # the new one stands, whatever becomes of the old
        remove(aside)


def hidden(path: Path, kind: str) -> Path:
    """The sibling `.<name>.<kind>`; 'tmp' is unfinished, 'old' was set aside."""
    return path.with_name(f".{path.name}.{kind}")


def remove(path: Path) -> None:
    """Delete a directory if it is there, and of a link the link."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _flush_all(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            flush(path)
    flush(directory)


def cache_folder(cache_dir: str | Path | None = None) -> Path:
    """Where encoded rows are kept, and what else is found out once.

    Args:
        cache_dir: instead of the `main` folder in the cache of Hugging Face datasets.

    Raises:
        DiskError: it cannot be made.
    """
    if cache_dir is None:
        from datasets import config

        cache_dir = Path(config.HF_DATASETS_CACHE) / "main"
    folder = Path(cache_dir).expanduser()
    with told(folder / "rows"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder
