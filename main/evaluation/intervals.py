"""95% intervals of shares: Wilson's, and by resampling where answers are not alike in weight."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from main.evaluation.standard import resamples

Z = 1.959963984540054  # the normal quantile of 0.975


class Interval(NamedTuple):
    """A share of n, 0 to 1, and where it lies with 95% confidence."""

    value: float
    low: float
    high: float
    n: int


def wilson(hits: float, n: int) -> Interval:
    """The score interval of a share (Wilson 1927), which is sound near 0 and 1, too.

    >>> [round(bound, 4) for bound in wilson(8, 10)[:3]]
    [0.8, 0.4902, 0.9433]
    """
    share, part = hits / n, Z**2 / n
    centre = (share + part / 2) / (1 + part)
    half = Z * math.sqrt(share * (1 - share) / n + part / (4 * n)) / (1 + part)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def of_clusters(
    hits: Sequence[float], counts: Sequence[int], n_bootstrap: int = 1000, seed: int = 12345
) -> Interval:
    """The share sum(hits) / sum(counts), by drawing whole rows, whose answers go together.

    Args:
        hits, counts: of each row.
        n_bootstrap, seed: the resamples.
    """
    right, asked = np.array(hits, dtype=np.float64), np.array(counts, dtype=np.float64)
    shares = [
        right[rows].sum() / asked[rows].sum() for rows in resamples(len(asked), n_bootstrap, seed)
    ]
    low, high = np.quantile(shares, (0.025, 0.975))
    return Interval(float(right.sum() / asked.sum()), float(low), float(high), int(asked.sum()))


def of_groups(
    hits: Sequence[int], counts: Sequence[int], n_bootstrap: int = 1000, seed: int = 12345
) -> Interval:
    """The mean of the groups' shares, each group drawn anew by itself.

    A group's rows are right or wrong, so that a resample of them is a binomial number.
    """
    sizes = np.array(counts)
    shares = np.array(hits) / sizes
    generator = np.random.default_rng(seed)
    drawn = generator.binomial(sizes, shares, size=(n_bootstrap, len(sizes))) / sizes
    low, high = np.quantile(drawn.mean(axis=1), (0.025, 0.975))
    return Interval(float(shares.mean()), float(low), float(high), int(sizes.sum()))
