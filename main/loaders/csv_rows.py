"""Rows of CSV and TSV: the first line names the columns, every cell is text.

Cells of columns that are more than text in other files (messages, tools, lists of answers) are read
as JSON where they are JSON; of `label`, `weight`, `train` and `loss`, empty is a field that is not
there.
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main.dialogue.messages import WEIGHTS
from main.errors import DataError
from main.loaders import strict_json
from main.loaders.format import OnBad
from main.loaders.json_rows import not_utf8
from main.loaders.streams import LONGEST_LINE, lines_of

# Never text in any format: empty is absent.
_TYPED = (
    *("label", *WEIGHTS, "tools", "images", "videos", "audios", "chat_template_kwargs"),
    *("conversations", "messages", "history"),
)
# Text, or a list of messages; text, or a list of texts.
_MESSAGES = ("prompt", "completion", "chosen", "rejected")
_ANSWERS = ("gold_answers", "bad_answers")


def read_delimited(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line on which the row begins, row); see `read_rows`."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))
    lines = _Lines(path)
    reader = csv.reader(lines, delimiter=lines.delimiter, strict=True)
    names: list[str] | None = None
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path} line {number}: not valid CSV: {error}.") from None
        if not any(map(str.strip, cells)):
            continue
        if names is None:
            names = _header(path, number, cells)
        elif len(cells) != len(names):
            on_bad(number, f"{len(cells)} cells under {len(names)} columns {names}.")
        else:
            row, problem = _row(dict(zip(names, cells, strict=True)))
            if problem:
                on_bad(number, problem)
            else:
                yield number, row


class _Lines:
    """The lines of a file as text; `delimiter` is read from the first one."""

    def __init__(self, path: Path):
        self.path, self._lines = path, lines_of(path)
        self._first = next(self._texts(), "")
        self.delimiter = max(",\t;", key=self._first.count)

    def __iter__(self) -> Iterator[str]:
        if self._first:
            yield self._first
        yield from self._texts()

    def _texts(self) -> Iterator[str]:
        for number, line in self._lines:
            try:
                yield line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path} line {number}: {not_utf8(error, line)}") from None


def _header(path: Path, number: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    wrong = next((n for n in names if not n or names.count(n) > 1), None)
    if wrong is not None:
        what = f"{wrong!r} names two columns" if wrong else "a column has no name"
        raise DataError(f"{path} line {number}: {what}; the first line names each column once.")
    return names


def _row(cells: dict[str, str]) -> tuple[dict[str, Any], str]:
    row: dict[str, Any] = {}
    for name, cell in cells.items():
        if name in _TYPED and not cell.strip():
            continue
        try:
            row[name] = _value(name, cell)
        except strict_json.NotJson as error:
            return {}, f"'{name}': {error}"
    return row, ""


def _value(name: str, cell: str) -> Any:
    text = cell.strip()
    if name in _TYPED:
        found = {"true": True, "false": False}.get(text.lower())
        return strict_json.loads(text) if found is None else found
    kind = dict if name in _MESSAGES else str if name in _ANSWERS else None
    if kind is None or not text.startswith("["):
        return cell
    try:
        listed = strict_json.loads(text)
    except strict_json.NotJson:  # text that begins with a bracket
        return cell
    return listed if listed and all(isinstance(entry, kind) for entry in listed) else cell
