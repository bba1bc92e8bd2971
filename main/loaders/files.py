"""Rows of a data file, one at a time: a JSON array, or JSON Lines (one object a line)."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from main.errors import DataError, MissingFileError
from main.loaders import strict_json

_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"
_BLOCK = 2**16
LONGEST_LINE = 2**26  # bytes; a row with a picture inside has a tenth of it
LARGEST_ARRAY = 2**31  # bytes; its text is held in memory

# (row number, what is wrong with it) -> None
OnBad = Callable[[int, str], None]


def row_word(path: str | Path) -> Literal["line", "item"]:
    """What a row number of `path` counts: 'line' (JSON Lines) or 'item' (JSON array).

    Raises:
        MissingFileError: there is no such file.
    """
    with _open(path) as stream:
        return "item" if _first_character(stream) == b"[" else "line"


def read_rows(
    path: str | Path, on_bad: OnBad | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row), both as they stand in the file; only one row is alive at a time.

    The number counts from 1: physical lines of JSON Lines (blank ones included), items of an
    array. UTF-8; a BOM and blank lines are tolerated. An array's text is held in memory, its
    rows are not.

    Args:
        path: the file.
        on_bad: called with the number and one sentence for a row that cannot be read, after which
            the next row follows; by default the first such row raises.

    Raises:
        MissingFileError: there is no such file; at the call, not at the first row.
        DataError: text that is not UTF-8 or not JSON, or a row that is not an object.
    """
    path = Path(path)
    word = row_word(path)

    def refuse(number: int, problem: str) -> None:
        raise DataError(f"{path} {word} {number}: {problem}")

    read = _read_array if word == "item" else _read_lines
    return read(path, on_bad or refuse)


def _read_lines(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    with _open(path) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            row, problem = _parse_line(line)
            if row is None:
                on_bad(number, problem)
            else:
                yield number, row


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Of one that is too long its beginning, one byte more than a line may have."""
    while line := stream.readline(LONGEST_LINE + 1):
        rest = line
        while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
            rest = stream.readline(LONGEST_LINE + 1)
        yield line


def _parse_line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(row, '') or (None, problem)."""
    if len(line) > LONGEST_LINE:
        return None, f"the line has more than {LONGEST_LINE:,} bytes, which is no row."
    try:
        row = strict_json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, _not_utf8(error, line)
    except strict_json.NotJson as error:
        return None, f"{error}{_hint(error.__cause__)}"
    problem = _object_problem(row)
    return (None, problem) if problem else (row, "")


def _read_array(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _read_text(path)
    position = _skip(text, text.index("[") + 1)
    number = 0
    while text[position : position + 1] != "]" or number:
        number += 1
        try:
            start = position
            row, position, problem = strict_json.raw_decode(text, position)
            position = _skip(text, position)
            follows = text[position : position + 1]
            if follows not in (",", "]") or not follows:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", start)) + 1
            problem = strict_json.syntax(error) + _hint(error)
            raise DataError(f"{path} line {line} (item {number}): {problem}") from None
        problem = problem or _object_problem(row)
        if problem:
            on_bad(number, problem)
        else:
            yield number, row
        if follows == "]":
            break
        position = _skip(text, position + 1)
    _refuse_rest(path, text, position + 1)


def _refuse_rest(path: Path, text: str, position: int) -> None:
    position = _skip(text, position)
    if position < len(text):
        line = text.count("\n", 0, position) + 1
        raise DataError(
            f"{path} line {line}: {text[position : position + 20]!r} stands after the end of the "
            "JSON array; remove it, or write one JSON object a line."
        )


def _read_text(path: Path) -> str:
    with _open(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > LARGEST_ARRAY:
            raise DataError(
                f"{path} has {size:,} bytes, and {LARGEST_ARRAY:,} are the most of an array, which "
                "is held in memory. Write one JSON object a line."
            )
        data = stream.read().removeprefix(_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: {_not_utf8(error, data)}") from None


def read_json(path: str | Path) -> Any:
    """The one value that a file holds, such as a registry's.

    Raises:
        MissingFileError: there is no such file.
        DataError: text that is not UTF-8 or not JSON.
    """
    try:
        return strict_json.loads(_read_text(Path(path)))
    except strict_json.NotJson as error:
        cause = error.__cause__
        line = f" line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: {error}") from error


def _open(path: str | Path) -> BinaryIO:
    # What the system says of an impossible name is not of interest here: there is no such file.
    if os.path.isdir(path):
        raise MissingFileError(f"{path} is a folder; name the JSON file in it.")
    if not os.path.exists(path):
        raise MissingFileError(f"{path} does not exist (looked from {Path.cwd()}).")
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _first_character(stream: BinaryIO) -> bytes:
    while block := stream.read(_BLOCK):
        text = block.removeprefix(_BOM).strip()
        if text:
            return text[:1]
    return b""


def _skip(text: str, position: int) -> int:
    """The first position at or after `position` that is not blank."""
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def _object_problem(row: Any) -> str:
    if not isinstance(row, dict):
        return f"a row must be a JSON object like {{...}}; found {_shown(row)}."
    return ""


def _hint(error: BaseException | None) -> str:
    """What a file is, where it is no JSON at all."""
    wrong = isinstance(error, json.JSONDecodeError)
    return " A file is a JSON array, or has one JSON object a line." if wrong else ""


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"


def _not_utf8(error: UnicodeDecodeError, data: bytes) -> str:
    return (
        f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 (files in GBK or "
        "UTF-16 have to be converted)."
    )
