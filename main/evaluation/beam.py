"""Edit distance in a band along the diagonal, for many slightly changed texts at once.

D[i, j], the cost of turning the first i symbols of the source into the first j of the target, is
kept for the band only: off[i] <= j < off[i] + W. F is that table; B[i, j] is the cost of the rest,
from (i, j) to the end. A text that differs from the source in symbols first..last costs

    min over j of F'[last, j] + B[last, j]

where F' are the few rows that change. So a candidate costs its changed rows, not the whole table.
"""

import math
from collections.abc import Sequence

import numpy as np

INF = 1 << 28  # of cells outside of the band
FINITE = 1 << 27


class Band:
    """Tables of a source of n >= 1 symbols against a target of m >= 1; all texts have length n.

    The band is sacreBLEU's: `width` cells to either side of j = floor(i m / n).
    """

    def __init__(self, source: Sequence[int], target: Sequence[int], width: int):
        self.source, self.n, self.m = np.array(source, np.int32), len(source), len(target)
        self.cells = np.arange(2 * width, dtype=np.int32)
        ratio = self.m / self.n
        middle = [math.floor(i * ratio) for i in range(self.n + 1)]
        middle[0] = middle[1] - 1  # so that row 1 finds the part of row 0 that it needs
        self.off = np.array(middle, np.int64) - width
        columns = self.off[:, None] + np.arange(2 * width + 1)  # one more: the next symbol
        self.before = columns[:, :-1] < 0
        self.behind = columns[:, :-1] > self.m
        known = np.array([-1, *target, -1], np.int32)  # symbol number j - 1 stands at j
        self.symbols = known[np.clip(columns, 0, self.m + 1)]
        self.symbols[(columns < 1) | (columns > self.m)] = -1
        self.forward = np.full((self.n + 1, 2 * width), INF, np.int32)
        self.backward = np.full((self.n + 1, 2 * width), INF, np.int32)
        self.forward[0] = np.where(self.before[0], INF, columns[0, :-1])
        self.backward[-1] = np.where(self.behind[-1], INF, self.m - columns[-1, :-1])
        self._fill_forward(1, self.n)
        self._fill_backward(self.n - 1, 0)

    @property
    def distance(self) -> int:
        """Of the source."""
        return int(self.forward[self.n, self.m - self.off[self.n]])

    def value(self, i: int, j: int) -> int:
        """F[i, j]; INF outside of the band."""
        if i == 0:
            return j
        cell = j - int(self.off[i])
        return int(self.forward[i, cell]) if 0 <= cell < len(self.cells) else INF

    def distances(self, firsts: Sequence[int], changed: Sequence[Sequence[int]]) -> np.ndarray:
        """Of texts that have the symbols `changed[k]` from `firsts[k]` on, else the source's."""
        order = sorted(range(len(changed)), key=lambda k: -len(changed[k]))
        spans = np.array([len(changed[k]) for k in order])
        first = np.array([firsts[k] for k in order])
        symbols = np.full((len(order), int(spans[0])), -1, np.int32)
        for row, k in zip(symbols, order, strict=True):
            row[: len(changed[k])] = changed[k]
        rows = self.forward[first]
        for step in range(int(spans[0])):
            some = int((spans > step).sum())  # those whose change is not at its end
            i = first[:some] + step + 1
            rows[:some] = self._next_rows(rows[:some], symbols[:some, step], i)
        found = np.empty(len(order), np.int64)
        found[order] = (rows + self.backward[first + spans]).min(axis=1)
        return found

    def replace(self, first: int, changed: Sequence[int]) -> None:
        """Make the text with these symbols the source."""
        self.source[first : first + len(changed)] = changed
        self._fill_forward(first + 1, first + len(changed))
        self._fill_backward(first + len(changed) - 1, first)

    def _fill_forward(self, start: int, changed: int) -> None:
        """Rows from `start` on; behind row `changed`, until they differ by a number from before."""
        for i in range(start, self.n + 1):
            row = self._next_rows(self.forward[i - 1 : i], self.source[i - 1 : i], np.array([i]))[0]
            step = _shift(self.forward[i], row) if i > changed else None
            self.forward[i] = row
            if step is not None:
                self.forward[i + 1 :] += step
                return

    def _fill_backward(self, start: int, changed: int) -> None:
        """As `_fill_forward`, in the other direction."""
        for i in range(start, -1, -1):
            row = self._row_before(i)
            step = _shift(self.backward[i], row) if i < changed else None
            self.backward[i] = row
            if step is not None:
                self.backward[:i] += step
                return

    def _next_rows(self, rows: np.ndarray, symbols: np.ndarray, i: np.ndarray) -> np.ndarray:
        """Rows i (K, W) from rows i - 1 (K, W) and the symbols between them (K,)."""
        above = _window(rows, self.off[i] - self.off[i - 1] - 1)  # (K, W + 1), from j - 1 on
        differs = self.symbols[i, :-1] != symbols[:, None]
        cost = np.minimum(above[:, :-1] + differs, above[:, 1:] + 1)
        cost[self.before[i]] = INF
        cost -= self.cells
        np.minimum.accumulate(cost, axis=1, out=cost)
        cost += self.cells
        return np.minimum(cost, INF)

    def _row_before(self, i: int) -> np.ndarray:
        """Row i (W,) of B from row i + 1."""
        below = _window(self.backward[i + 1 : i + 2], self.off[i : i + 1] - self.off[i + 1])[0]
        differs = self.symbols[i, 1:] != self.source[i]
        cost = np.minimum(below[1:] + differs, below[:-1] + 1)
        cost[self.behind[i]] = INF
        cost += self.cells
        cost = np.minimum.accumulate(cost[::-1])[::-1] - self.cells
        return np.minimum(cost, INF)


def _window(rows: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Cells start[k] .. start[k] + W of each row k, INF where there are none: (K, W + 1)."""
    count, width = rows.shape
    padded = np.full((count, width + 2), INF, np.int32)
    padded[:, 1:-1] = rows
    cells = np.clip(start[:, None] + np.arange(width + 1), -1, width) + 1
    return np.take_along_axis(padded, cells, axis=1)


def _shift(before: np.ndarray, now: np.ndarray) -> int | None:
    """What was added to every cell; None where it differs from cell to cell."""
    inside = now < FINITE
    steps = now[inside] - before[inside]
    return int(steps[0]) if len(steps) and (steps == steps[0]).all() else None
