"""Which rows make up which optimizer step, and who computes them.

The order is global: it depends on the seed, the epoch and the rows of a step, not on how many
processes share a step or how it is cut into micro-batches.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from main.loaders.shares import AGAIN, Share, drawn

# Rows are sorted by length within blocks of this many steps: little padding, still well mixed.
BLOCK_STEPS = 32


class MicroBatch(NamedTuple):
    """Row numbers for one forward pass; `counted` is False for a filler to keep ranks in step."""

    rows: list[int]
    counted: bool


def plan_epoch(
    lengths: Sequence[int],
    step_rows: int,
    seed: int,
    epoch: int,
    group_by_length: bool = True,
    shares: Sequence[Share] = (),
) -> list[list[int]]:
    """The rows of every optimizer step of an epoch; each row appears exactly once.

    Args:
        lengths: tokens of each row.
        step_rows: rows of one optimizer step over all processes; the last step may have fewer.
        group_by_length: put rows of similar length in a step. The step that holds the longest row
            comes first in the first epoch, so that memory that does not suffice shows at once.
        shares: of a mixture, whose rows come as often as `shares.drawn` says.
    """
    rng = random.Random(f"{seed}-{epoch}")
    rows = drawn(shares, seed, epoch) if shares else list(range(len(lengths)))
    rng.shuffle(rows)
    if not group_by_length:
        return _cut(rows, step_rows)
    steps: list[list[int]] = []
    for block in _cut(rows, step_rows * BLOCK_STEPS):
        steps += _cut(sorted(block, key=lambda row: -lengths[row % AGAIN]), step_rows)
    rng.shuffle(steps)
    # A short step stays last: it must not take the place of a full one in the schedule.
    steps.sort(key=lambda step: len(step) < step_rows)
    if epoch == 1 and len(steps) > 1:
        tokens = [max(lengths[row % AGAIN] for row in step) for step in steps]
        longest = max(range(len(steps)), key=tokens.__getitem__)
        if len(steps[longest]) == len(steps[0]):
            steps[0], steps[longest] = steps[longest], steps[0]
    return steps


def shard(
    rows: Sequence[int],
    lengths: Sequence[int] | Mapping[int, int],
    batch_size: int,
    rank: int,
    world: int,
) -> list[MicroBatch]:
    """This rank's micro-batches of one step: similar lengths together, as many on every rank.

    Args:
        rows: the step's rows, over all ranks.
        lengths: tokens of each of them, by row number.
        batch_size: most rows in one micro-batch of one rank.
    """
    rows = sorted(rows, key=lambda row: (-lengths[row], row))
    rounds = -(-len(rows) // (batch_size * world))
    pieces = spread(rows, rounds * world)
    mine = pieces[rank::world]
    return [MicroBatch(piece or rows[-1:], bool(piece)) for piece in mine]


def _cut(rows: Sequence[int], size: int) -> list[list[int]]:
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


def spread(rows: Sequence[int], pieces: int) -> list[list[int]]:
    """Cut into `pieces` runs whose sizes differ by one at most."""
    size, extra = divmod(len(rows), pieces)
    ends = [size * i + min(i, extra) for i in range(pieces + 1)]
    return [list(rows[a:b]) for a, b in pairwise(ends)]
