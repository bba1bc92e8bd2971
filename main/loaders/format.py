"""What every row format offers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from main.loaders.report import Report
from main.options import nearest

Row = dict[str, Any]
Numbered = tuple[int, Row]


class Format(NamedTuple):
    """One row format.

    name: for messages and for the cache.
    version: raised when the same rows would become other ids.
    columns: column -> type name, or [type name] for a list, of the encoded rows.
    validate: (row) -> everything wrong with it, as sentences.
    encode: (numbered rows, template, max_length, report) -> encoded rows, one dict each. Rows that
        the template cannot render are refused in the report.
    """

    name: str
    version: int
    columns: dict[str, Any]
    validate: Callable[[Row], list[str]]
    encode: Callable[[Sequence[Numbered], Any, int | None, Report], Iterator[Row]]


def missing(row: Row, fields: Sequence[str]) -> list[str]:
    """One sentence for every field that the row does not have."""
    return [
        f"'{name}' is missing; found {sorted(row)}."
        + "".join(nearest(name, [k for k in row if k not in fields]))
        for name in fields
        if name not in row
    ]
