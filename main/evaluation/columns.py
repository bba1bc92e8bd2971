"""Columns of the table of edit distances, each as two integers.

D[i, j] is the distance (Levenshtein) of the first i symbols of a source to the first j of a
target. Column i is kept as the differences down it, a bit for each j: bit j of `up` is set where
D[i, j + 1] is D[i, j] + 1, of `down` where it is D[i, j] - 1. So a symbol more costs a dozen
operations on whole columns (Hyyrö 2003, "A Bit-Vector Algorithm for Computing Levenshtein and
Damerau Edit Distances").
"""

from collections.abc import Sequence

import numpy as np

Column = tuple[int, int]  # up, down
UNMASKED = 16  # symbols after which bits beyond the target are taken off, two for each


class Target:
    """The text to reach, with the positions of each of its symbols as a bit mask."""

    def __init__(self, text: str):
        self.text, self.full = text, (1 << len(text)) - 1
        self.masks: dict[str, int] = {}
        for position, symbol in enumerate(text):
            self.masks[symbol] = self.masks.get(symbol, 0) | 1 << position
        self._lanes: dict[int, Lanes] = {}

    def lanes(self, count: int) -> "Lanes":
        """For `count` columns at once."""
        if count not in self._lanes:
            self._lanes[count] = Lanes(self, count)
        return self._lanes[count]

    def first_column(self) -> Column:
        return self.full, 0

    def after(self, column: Column, text: str, kept: list[Column] | None = None) -> Column:
        """The column after more source symbols; the one after each goes into `kept` too."""
        masks, full = self.masks, self.full
        for start in range(0, len(text), UNMASKED):
            up, down = column
            for symbol in text[start : start + UNMASKED]:
                here = masks.get(symbol, 0)
                diagonal = (((here & up) + up) ^ up) | here | down
                same = ((diagonal | up) ^ down) << 1  # where the row does not grow
                both = diagonal & same
                up = (diagonal & up) << 1 | (same ^ both)
                down = diagonal ^ both
                if kept is not None:
                    kept.append((up & full, down & full))
            column = up & full, down & full
        return column


class Lanes(Target):
    """Several columns side by side in one, for sources that go on with the same symbols.

    Bits beyond the target, before they are taken off, do not reach the next lane.
    """

    def __init__(self, target: Target, count: int):
        self.text, self._one = target.text, target.full
        self._width = len(target.text) + 2 * UNMASKED + 2
        every = sum(1 << lane * self._width for lane in range(count))
        self.full = target.full * every
        self.masks = {symbol: mask * every for symbol, mask in target.masks.items()}

    def joined(self, columns: Sequence[Column]) -> Column:
        up = sum(one << lane * self._width for lane, (one, _) in enumerate(columns))
        return up, sum(one << lane * self._width for lane, (_, one) in enumerate(columns))

    def lane(self, column: Column, number: int) -> Column:
        up, down = (bits >> number * self._width & self._one for bits in column)
        return up, down


def last_cell(first: int, column: Column) -> int:
    """The column's last cell, given its first one."""
    up, down = column
    return first + up.bit_count() - down.bit_count()


def least_sums(
    heads: Sequence[Column], tails: Sequence[Column], length: int, size: int
) -> list[int]:
    """The distance of each source, cut in two: min over j of head[j] + tail[j].

    Args:
        heads: columns after the first part of a source.
        tails: columns after the second part read backwards, to the target read backwards.
        length: symbols of both parts together.
        size: symbols of the target, at least one.
    """
    steps = _differences(heads, size) - _differences(tails, size)[:, ::-1]
    first = np.array([last_cell(length, tail) for tail in tails])
    return (first + np.cumsum(steps, axis=1, dtype=np.int32).min(axis=1, initial=0)).tolist()


def _differences(columns: Sequence[Column], size: int) -> np.ndarray:
    """(K, size) of -1, 0 and 1."""
    return _bits([up for up, _ in columns], size) - _bits([down for _, down in columns], size)


def _bits(numbers: Sequence[int], size: int) -> np.ndarray:
    count = -(-size // 8)
    data = b"".join(number.to_bytes(count, "little") for number in numbers)
    rows = np.frombuffer(data, np.uint8).reshape(len(numbers), count)
    return np.unpackbits(rows, axis=1, count=size, bitorder="little").view(np.int8)
