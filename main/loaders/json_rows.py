"""Rows of JSON: an array, or JSON Lines (one object a line)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main.errors import DataError
from main.loaders import streams, strict_json
from main.loaders.format import OnBad
from main.loaders.streams import BOM, lines_of, open_bytes, readable, whole

_BLANK = " \t\r\n"
_CHUNK = 4096


def begins_array(path: Path) -> bool:
    """Whether the first character that is not blank opens an array."""
    with open_bytes(path) as stream, readable(path):
        text = stream.read(_CHUNK).removeprefix(BOM)
        while text and not text.strip():
            text = stream.read(_CHUNK)
    return text.strip()[:1] == b"["


def read_lines(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in lines_of(path, passes_over=True):
        if not line.strip():
            continue
        row, problem = _parse_line(line)
        if row is None:
            on_bad(number, problem)
        else:
            yield number, row


def _parse_line(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """(row, '') or (None, problem)."""
    if len(line) > streams.LONGEST_LINE:
        return None, f"the line has more than {streams.LONGEST_LINE:,} bytes, which is no row."
    try:
        row = strict_json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, not_utf8(error, line)
    except strict_json.NotJson as error:
        return None, f"{error}{_hint(error.__cause__)}"
    problem = object_problem(row)
    return (None, problem) if problem else (row, "")


def read_array(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    text = read_text(path)
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
        problem = problem or object_problem(row)
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


def read_text(path: Path) -> str:
    data = whole(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path} line {line}: {not_utf8(error, data)}") from None


def _skip(text: str, position: int) -> int:
    """The first position at or after `position` that is not blank."""
    while position < len(text) and text[position] in _BLANK:
        position += 1
    return position


def object_problem(row: Any) -> str:
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


def not_utf8(error: UnicodeDecodeError, data: bytes) -> str:
    return (
        f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8 (files in GBK or "
        "UTF-16 have to be converted)."
    )
