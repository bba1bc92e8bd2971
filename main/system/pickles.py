"""Files that torch pickled: what reading one would do, told from its instructions alone.

torch's own reader (`weights_only=True`) refuses foreign names, and advises to switch that off; it
does not mind how much memory the rest takes.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

# Packages whose names torch's reader itself sorts, and what else stands in files of tensors.
_PACKAGES = ("torch", "numpy", "collections")
_BUILTINS = {f"{m} {n}" for m in ("builtins", "__builtin__") for n in ("set", "complex")}
_NAMES = {"_codecs encode", *_BUILTINS}
_OF_ITS_OWN_FORMAT = 5  # pickles in a row: what torch wrote before it wrote archives


class Unreadable(ValueError):
    """What is wrong with a file, as a sentence's end."""


def load_plain(path: Path, mmap: bool = False) -> Any:
    """The tensors and plain values of a file, on the CPU; no code of it is run.

    Raises:
        Unreadable: it is damaged, or more than that.
    """
    import torch

    check_plain(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # of damaged bytes torch makes errors of many classes
        # Not its own words, and not as the cause: they advise to read it with code and all.
        said = "" if "weights_only" in str(error) else f": {str(error).partition(chr(10))[0]}"
        raise Unreadable(f"is damaged, or holds more than tensors{said}") from None


def check_plain(path: Path) -> None:
    """Raise Unreadable for a file that would run code or unpack to more than its size."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_archive(archive)
        else:
            with path.open("rb") as stream:
                _check_names(_first_pickles(stream))
    except (zipfile.BadZipFile, EOFError, RuntimeError) as error:
        raise Unreadable(f"is damaged: {error}") from error


def _check_archive(archive: zipfile.ZipFile) -> None:
    for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Unreadable(f"is packed ('{entry.filename}'), as torch packs none")
        if entry.filename.endswith(".pkl"):
            _check_names([archive.read(entry)])


def _first_pickles(stream: BinaryIO) -> Iterator[bytes]:
    """One after the other; what follows them are bytes of tensors."""
    for _ in range(_OF_ITS_OWN_FORMAT):
        start = stream.tell()
        if not stream.read(1):
            return
        stream.seek(start)
        try:
            for _ in pickletools.genops(stream):
                pass
        except ValueError:
            return  # no pickle: torch says so
        end = stream.tell()
        stream.seek(start)
        yield stream.read(end - start)


def _check_names(pickles: Any) -> None:
    for one in pickles:
        try:
            for operation, argument, _ in pickletools.genops(BytesIO(one)):
                if operation.name == "GLOBAL" and not _is_plain(str(argument)):
                    name = str(argument).replace(" ", ".")
                    raise Unreadable(f"names {name}, which is no tensor: reading it would run code")
        except ValueError as error:
            if isinstance(error, Unreadable):
                raise
            raise Unreadable(f"is damaged: {error}") from error


def _is_plain(name: str) -> bool:
    return name in _NAMES or name.split(" ")[0].split(".")[0] in _PACKAGES
