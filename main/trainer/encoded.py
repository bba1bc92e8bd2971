"""Encoded rows of a split, of one file or of several."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from main.loaders.digest import rows_digest
from main.loaders.shares import Share
from main.loaders.sources import Source


class EncodedRows:
    """Memory-mapped rows, read one at a time; `lengths` alone is held in memory.

    Rows of several files follow one another, and so do their numbers: those of the second file go
    on behind the last one of the first.

    table: the Arrow table that they lie in.
    shares: of a mixture; empty where each row comes once an epoch.

    Args:
        parts: a `datasets.Dataset` of encoded rows for every part of the source.
    """

    def __init__(self, parts: Sequence[Any], source: Source):
        from datasets import concatenate_datasets

        self._dataset = parts[0] if len(parts) == 1 else concatenate_datasets(list(parts))
        self.table = self._dataset.data
        self.lengths = list(self._dataset["length"])
        self.shares = _shares(source, [len(part) for part in parts])
        self._starts = [0, *accumulate(len(part) for part in parts)]
        self._numbers = [0, *accumulate(part["row"][-1] for part in parts)]

    @cached_property
    def digest(self) -> str:
        return rows_digest(self._dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._dataset[index]
        before = self._numbers[bisect_right(self._starts, index) - 1]
        return {**row, "row": row["row"] + before}


def _shares(source: Source, rows: Sequence[int]) -> tuple[Share, ...]:
    """The entries of a mixture, with the rows of their parts as they were encoded."""
    found, first = [], 0
    for parts, weight in source.weights:
        end = first + parts
        name = ", ".join(part.name for part in source.parts[first:end])
        found.append(Share(name, sum(rows[first:end]), weight))
        first = end
    return tuple(found)
