"""Files that are whole or not there, whatever interrupts their writing."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def appearing(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """The path of a new file that takes the target's name when the block ends well, else vanishes.

    Args:
        target: what stood under this name stays until it is replaced.
        folder: where the new file is written, on the same disk; by default beside the target.
    """
    temporary = (folder or target.parent) / f"{target.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
        flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
