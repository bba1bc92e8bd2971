"""Rows of a data file, one at a time: a JSON array, or JSON Lines (one object a line)."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from main.errors import DataError, MissingFileError

_BOM = b"\xef\xbb\xbf"
_BLANK = " \t\r\n"

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
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(_BOM)
            if not line.strip():
                continue
            row, problem = _parse_line(line)
            if row is None:
                on_bad(number, problem)
            else:
                yield number, row


def _parse_line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(row, '') or (None, problem)."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, _not_utf8(error, line)
    except (json.JSONDecodeError, RecursionError) as error:
        return None, _not_json(error)
    problem = _object_problem(row)
    return (None, problem) if problem else (row, "")


def _read_array(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _read_text(path)
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    number = 0
    while text[position : position + 1] != "]" or number:
        number += 1
        try:
            row, position = decoder.raw_decode(text, position)
            position = _skip(text, position)
            follows = text[position : position + 1]
            if follows not in (",", "]") or not follows:
                raise json.JSONDecodeError("Expecting ',' or ']'", text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} {_place(error)} (item {number}): {_not_json(error)}") from None
        problem = _object_problem(row)
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
        data = stream.read().removeprefix(_BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: {_not_utf8(error, data)}") from None


def _open(path: str | Path) -> BinaryIO:
    path = Path(path)
    if path.is_dir():
        raise MissingFileError(f"{path} is a folder; name the JSON file in it.")
    if not path.exists():
        raise MissingFileError(f"{path} does not exist (looked from {Path.cwd()}).")
    return path.open("rb")


def _first_character(stream: BinaryIO) -> bytes:
    for line in stream:
        text = line.removeprefix(_BOM).strip()
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
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        return (
            f"{error.object[error.start]!a} is half a surrogate pair, not a character: "
            "the text was cut inside an escaped emoji; remove or complete it."
        )
    return ""


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return f"{type(value).__name__} {text[:40]}{'...' if len(text) > 40 else ''}"


def _not_utf8(error: UnicodeDecodeError, data: bytes) -> str:
    return (
        f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 (files in GBK or "
        "UTF-16 have to be converted)."
    )


def _not_json(error: json.JSONDecodeError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "not valid JSON: brackets are nested too deeply."
    return (
        f"not valid JSON: {error.msg} at column {error.colno}. "
        "A file is a JSON array, or has one JSON object a line."
    )


def _place(error: json.JSONDecodeError | RecursionError) -> str:
    return f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "array"
