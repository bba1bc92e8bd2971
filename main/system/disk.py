"""Files that are whole or not there, whatever interrupts their writing; and what a disk refuses."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from main.errors import DiskError, MainError


@contextlib.contextmanager
def appearing(target: Path, folder: Path | None = None) -> Iterator[Path]:
    """The path of a new file that takes the target's name when the block ends well, else vanishes.

    Args:
        target: what stood under this name stays until it is replaced.
        folder: where the new file is written, on the same disk; by default beside the target.

    Raises:
        DiskError: it could not be written; what stood there stands.
    """
    temporary = (folder or target.parent) / f"{target.name}.{secrets.token_hex(4)}.tmp"
    with told(target):
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, target)
            flush(target.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def told(path: Path, could_not_be: str = "written") -> Iterator[None]:
    """What the disk refuses inside becomes a `DiskError` about `path`.

    Errors that speak of files elsewhere pass as they are.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, MainError) or not _is_about(path, error):
            raise
        raise disk_error(path, error, could_not_be) from error


def disk_error(path: Path, error: Exception, could_not_be: str = "written") -> DiskError:
    """The true cause, and what to do: of errors of Python, and of writers in Rust and C++."""
    cause, advice = _explained(path, error)
    first = str(error).partition("\n")[0]
    return DiskError(f"{path} could not be {could_not_be}: {cause} ({first}). {advice}")


def _is_about(path: Path, error: OSError) -> bool:
    name = error.filename
    if not isinstance(name, str | bytes) or os.path.basename(name) == name:
        # Of an open file, or of one named within an open folder, as in deleting a tree.
        return error.errno in _CAUSES and (name is None or error.errno != errno.ENOENT)
    named, folder = Path(os.fsdecode(name)).absolute(), path.absolute().parent
    return named.is_relative_to(folder) or folder.is_relative_to(named)


_FREE = "Free some space or choose another folder; what was written earlier is intact."
_ELSEWHERE = "Choose another folder, or have its permissions changed."
_LOOK = "Look at the disk or the network drive; what was written earlier is intact."
_CAUSES = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("your quota of this disk is used up", _FREE),
    errno.EFBIG: ("a file would be larger than the disk or `ulimit -f` lets it be", _FREE),
    errno.EROFS: ("the disk is read-only", "Choose a folder that can be written."),
    errno.EACCES: ("you may not write there", _ELSEWHERE),
    errno.EPERM: ("you may not write there", _ELSEWHERE),
    errno.EIO: ("the disk reports a fault", _LOOK),
    errno.ESTALE: ("the network drive has lost the folder", _LOOK),
    errno.ETIMEDOUT: ("the network drive does not answer", _LOOK),
    errno.EMFILE: ("too many files are open", "Raise the limit with `ulimit -n`."),
    errno.ENFILE: ("too many files are open on this host", "Close other programs."),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one."),
    errno.ENOENT: ("it, or its folder, has been deleted meanwhile", "Let no other program do so."),
}
_IN_THE_WAY = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


def _explained(path: Path, error: Exception) -> tuple[str, str]:
    number = _number(error)
    blocking = _file_in_the_way(path)
    if number in _IN_THE_WAY and blocking:
        return f"'{blocking}' is a file where a folder is needed", "Move it, or choose another name"
    if number is None and _free(path) < 2**20:
        number = errno.ENOSPC
    unknown = "its writer failed", "Is the disk full, or its folder not writable?"
    return _CAUSES.get(number, unknown) if number else unknown


def _number(error: Exception) -> int | None:
    """Of the system's error; writers in other languages have it in their text alone."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    if found:
        return int(found[1])
    return next((n for n in _CAUSES if os.strerror(n) in str(error)), None)


def _file_in_the_way(path: Path) -> Path | None:
    return next((p for p in path.absolute().parents if p.exists() and not p.is_dir()), None)


def _free(path: Path) -> float:
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):
            return shutil.disk_usage(folder).free
    return float("inf")
