"""The bytes of a data file, unpacked where it is packed (gzip, Zstandard), in bounded lines.

What a file is packed with is read from its first bytes, not from its name. A packed file may unpack
to thousands of times its size, so that lines and whole texts have limits.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from main.errors import DataError, MissingFileError

BOM = b"\xef\xbb\xbf"
LONGEST_LINE = 1 << 26  # bytes of a row of JSON Lines or CSV: 64 MiB
LARGEST_ARRAY = 1 << 31  # bytes of a JSON array, whose text is held in memory: 2 GiB
LARGEST_UNPACKED = 1 << 30  # bytes of a packed JSON array, whose text is held in memory: 1 GiB

_PACKED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_FIRST = 6  # bytes that tell the kind of a file


def open_bytes(path: Path) -> BinaryIO:
    """The file, unpacked as it is read.

    Raises:
        MissingFileError: there is no such file.
        DataError: it cannot be read.
    """
    stream = _open(path)
    packed = packing(_peek(stream))
    if not packed:
        return stream
    import pyarrow

    unpacked = pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), packed)
    return io.BufferedReader(unpacked)  # type: ignore[type-var]


def first_bytes(path: Path) -> bytes:
    """The first few of the file, unpacked."""
    with open_bytes(path) as stream, readable(path):
        return stream.read(_FIRST)


def is_packed(path: Path) -> bool:
    with _open(path) as stream:
        return bool(packing(_peek(stream)))


def packing(first: bytes) -> str:
    """What a file that begins so is packed with; '' = nothing."""
    return next((name for magic, name in _PACKED.items() if first.startswith(magic)), "")


def lines_of(path: Path, passes_over: bool = False) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line with its end), without a BOM.

    Args:
        passes_over: of a line beyond `LONGEST_LINE` yield the beginning, one byte more than a line
            may have, unless the file is packed.

    Raises:
        DataError: such a line, or a packed file that is damaged.
    """
    passes_over = passes_over and not is_packed(path)
    with open_bytes(path) as stream, readable(path):
        number = 0
        while line := stream.readline(LONGEST_LINE + 1):
            number += 1
            rest = line
            while passes_over and len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = stream.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE and not passes_over:
                raise DataError(
                    f"{path} line {number}: longer than {LONGEST_LINE >> 20} MiB. Write one row a "
                    "line; of a packed file, look at what it unpacks to."
                )
            yield number, line.removeprefix(BOM) if number == 1 else line


def whole(path: Path) -> bytes:
    """All of it, without a BOM.

    Raises:
        DataError: a file beyond `LARGEST_ARRAY`, packed beyond `LARGEST_UNPACKED`, or damaged.
    """
    size = path.stat().st_size if path.is_file() else 0
    if size > LARGEST_ARRAY:
        raise DataError(
            f"{path} has {size:,} bytes, and {LARGEST_ARRAY:,} are the most of an array, which "
            "is held in memory. Write one JSON object a line."
        )
    limit = LARGEST_UNPACKED if is_packed(path) else -1
    with open_bytes(path) as stream, readable(path):
        data = stream.read(limit)
        if limit > 0 and len(data) == limit:
            raise DataError(
                f"{path} unpacks to more than {limit >> 20} MiB, and an array is held in memory: "
                "write JSON Lines (one object a line), which are read row by row."
            )
    return data.removeprefix(BOM)


class readable:
    """Turns what an unpacker says of a damaged file into a DataError."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | EOFError) and not isinstance(error, MissingFileError):
            raise DataError(f"{self.path} cannot be read: {error}.") from error


def _peek(stream: BinaryIO) -> bytes:
    first = stream.read(_FIRST)
    stream.seek(0)
    return first


def _open(path: Path) -> BinaryIO:
    # What the system says of an impossible name is not of interest here: there is no such file.
    if os.path.isdir(path):
        raise MissingFileError(f"{path} is a folder; name the data file in it.")
    if not os.path.exists(path):
        raise MissingFileError(f"{path} does not exist (looked from {Path.cwd()}).")
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
