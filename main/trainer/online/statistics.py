"""Means and spreads over the samples of all processes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from main.system.processes import gather_shares


class Moments(NamedTuple):
    """How many numbers over all processes, their mean and (biased) variance."""

    number: int
    mean: float
    variance: float


def moments(parts: Sequence[Tensor]) -> Moments:
    """Of all numbers in `parts`, on every process; all processes must call it."""
    flat = torch.cat([torch.empty(0), *parts]).detach().double().flatten().cpu()
    sums = gather_shares((len(flat), float(flat.sum())))
    count = sum(n for n, _ in sums)
    mean = sum(total for _, total in sums) / max(count, 1)
    squares = sum(gather_shares(float((flat - mean).square().sum())))
    return Moments(count, mean, squares / max(count, 1))
