"""Rows of a data file, one at a time: JSON, JSON Lines, CSV, TSV, Parquet, Arrow; packed or not."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from main.errors import DataError
from main.loaders import arrow_rows, csv_rows, json_rows, strict_json
from main.loaders.format import OnBad
from main.loaders.streams import first_bytes, is_packed

RowWord = Literal["line", "item", "record", "row"]
VERSION = 1  # raised when the same table or CSV would become other rows
DELIMITED = (".csv", ".tsv", ".tab")
# Endings of data files, before those of packed ones.
SUFFIXES = (".json", ".jsonl", ".ndjson", *DELIMITED, ".parquet", ".arrow")
PACKED_SUFFIXES = (".gz", ".zst")

_MAGIC = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream"}


class Kind(NamedTuple):
    """How a file is read.

    name: of the kind, part of the key under which encoded rows are kept.
    word: what its row numbers count.
    """

    name: str
    word: RowWord


def kind_of(path: str | Path) -> Kind:
    """What a file is: by its first bytes, and CSV and TSV by their names.

    Raises:
        MissingFileError: there is no such file.
        DataError: a file that is none of these.
    """
    path = Path(path).expanduser()
    first = first_bytes(path)
    if first.startswith(b"PK"):
        raise DataError(f"{path} is an archive or a workbook; save it as CSV or JSON Lines.")
    if name := next((name for magic, name in _MAGIC.items() if first.startswith(magic)), ""):
        if is_packed(path):
            raise DataError(f"{path} is {name} in a packed file; unpack it.")
        return Kind(name, "record")
    if plain_suffix(path) in DELIMITED:
        return Kind("delimited", "line")
    return Kind("array", "item") if json_rows.begins_array(path) else Kind("lines", "line")


def plain_suffix(path: Path) -> str:
    """'.csv' of 'a.CSV.gz'."""
    name = path.name.lower()
    for packed in PACKED_SUFFIXES:
        name = name.removesuffix(packed)
    return Path(name).suffix


def row_word(path: str | Path) -> RowWord:
    """What a row number of `path` counts: a 'line', an 'item' of an array, a 'record' of a table.

    Raises:
        MissingFileError, DataError: see `kind_of`.
    """
    return kind_of(path).word


def read_rows(
    path: str | Path, on_bad: OnBad | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, row), both as they stand in the file; only one row is alive at a time.

    The number counts from 1: physical lines of JSON Lines and CSV (blank ones included; of a row
    over several lines the first), items of an array, records of Parquet and Arrow. UTF-8; a BOM and
    blank lines are tolerated. An array's text is held in memory, its rows are not. Null in Parquet
    and Arrow is a field that is not there.

    Args:
        path: the file, also packed with gzip or Zstandard; `~` is the home folder.
        on_bad: called with the number and one sentence for a row that cannot be read, after which
            the next row follows; by default the first such row raises.

    Raises:
        MissingFileError: there is no such file; at the call, not at the first row.
        DataError: text that is not UTF-8 or not JSON, or a row that is not an object.
    """
    path = Path(path).expanduser()
    kind = kind_of(path)

    def refuse(number: int, problem: str) -> None:
        raise DataError(f"{path} {kind.word} {number}: {problem}")

    return _READERS[kind.name](path, on_bad or refuse)


def read_json(path: str | Path) -> Any:
    """The one value that a file holds, such as a registry's.

    Raises:
        MissingFileError: there is no such file.
        DataError: text that is not UTF-8 or not JSON.
    """
    try:
        return strict_json.loads(json_rows.read_text(Path(path).expanduser()))
    except strict_json.NotJson as error:
        cause = error.__cause__
        line = f" line {cause.lineno}" if isinstance(cause, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line}: {error}") from error


_READERS = {
    "array": json_rows.read_array,
    "lines": json_rows.read_lines,
    "delimited": csv_rows.read_delimited,
    "parquet": arrow_rows.read_parquet,
    "arrow": arrow_rows.read_arrow,
    "arrow stream": arrow_rows.read_arrow,
}
