"""What a benchmark is: rows of published files, questions made of them, and how answers count."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Row = Mapping[str, Any]
# name of a score -> (how many were right, how many there were)
Marks = dict[str, tuple[int, int]]


class Benchmark(NamedTuple):
    """One benchmark.

    columns: names of the columns of a CSV file without a line of titles; () where it has one.
    problems: (row) -> everything that keeps it from being asked or scored, as sentences.
    question: (row) -> the user's turn.
    mark: (row, answer) -> what is right in it; the answer of a row that failed is ''.
    group: (row) -> e.g. its subject; '' where the benchmark has none.
    scored: how answers are read, for the signature; it changes whenever a score would.
    """

    columns: tuple[str, ...]
    problems: Callable[[Row], list[str]]
    question: Callable[[Row], str]
    mark: Callable[[Row, str], Marks]
    group: Callable[[Row], str]
    scored: str


def missing(row: Row, *names: str) -> list[str]:
    """A sentence for each field that is not there, or is no text."""
    found = sorted(map(str, row))
    return [
        f"'{name}' is missing; found {found}."
        if name not in row
        else f"'{name}' must be a non-empty string; found {row[name]!r}."
        for name in names
        if not (isinstance(row.get(name), str) and row[name].strip())
    ]
