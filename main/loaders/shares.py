"""Which rows a mixture draws in an epoch: pure arithmetic on numbers of rows and weights.

N rows in all are N draws an epoch. Entry i gets the share w_i / sum of w of them, whatever its
size, and goes through its own rows in an order that is new each time: all of them once, then all
again, across epochs. A row of a small entry may come several times an epoch, one of a large entry
every other epoch; of two rows of an entry neither is ever two draws ahead of the other.
"""

import random
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

# A row that an epoch draws again is another example: its number is the row's plus this, times n.
AGAIN = 1 << 40


class Share(NamedTuple):
    """An entry of a mixture: its rows, one after the other behind those of the entries before."""

    name: str
    rows: int
    weight: float


def draws(shares: Sequence[Share]) -> list[int]:
    """How often an epoch draws from each entry; as many draws as there are rows.

    The largest remainders get what rounding leaves; of equal ones the first.

    >>> draws([Share("a", 300, 2.0), Share("b", 100, 1.0), Share("c", 50, 1.0)])
    [225, 113, 112]
    """
    total = sum(share.rows for share in shares)
    weights = [Fraction(share.weight) for share in shares]
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(count) for count in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def drawn(shares: Sequence[Share], seed: int, epoch: int) -> list[int]:
    """The rows of an epoch (from 1), in no order that matters.

    A row drawn for the n-th time in the epoch is row + (n - 1) * AGAIN.
    """
    found: list[int] = []
    start = 0
    for place, (share, count) in enumerate(zip(shares, draws(shares), strict=True)):
        first = (epoch - 1) * count
        times: dict[int, int] = {}
        for position in range(first, first + count):
            turn, index = divmod(position, share.rows)
            if index == 0 or position == first:
                order = _order(share.rows, f"{seed}-{place}-{turn}")
            row = start + order[index]
            found.append(row + times.get(row, 0) * AGAIN)
            times[row] = times.get(row, 0) + 1
        start += share.rows
    return found


def of_records(shares: Sequence[Share], rows: Sequence[int]) -> tuple[Share, ...]:
    """The shares of records made of rows, in the rows' order.

    Args:
        rows: of each record the row that it was made of; a row may have several records, or none.
    """
    if not shares:
        return ()
    counts, ends, end = [0] * len(shares), [], 0
    for share in shares:
        end += share.rows
        ends.append(end)
    place = 0
    for row in rows:
        while row >= ends[place]:
            place += 1
        counts[place] += 1
    found = (s._replace(rows=n) for s, n in zip(shares, counts, strict=True))
    return tuple(share for share in found if share.rows)


def told(shares: Sequence[Share]) -> str:
    """One line: of each entry its rows, its weight and its draws an epoch."""
    return "; ".join(
        f"{s.name}: {s.rows} rows, weight {s.weight:g}, {count} draws an epoch"
        for s, count in zip(shares, draws(shares), strict=True)
    )


def _order(rows: int, name: str) -> list[int]:
    order = list(range(rows))
    random.Random(name).shuffle(order)
    return order
