"""From what was judged of a step's completions to the credit of each, over all processes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from main.system.processes import gather_shares
from main.trainer.grpo.advantages import advantages, decoupled_advantages, zero_spread
from main.trainer.grpo.options import GRPOOptions
from main.trainer.online.sample import Sample

Key = tuple[int, int]  # source row, number of the completion


class Judged(NamedTuple):
    """N groups of G completions of the whole step.

    keys: N G of them, group after group.
    rewards: (N, G) float64; parts: (N, G, F), NaN where a reward does not apply.
    """

    keys: list[Key]
    rewards: Tensor
    parts: Tensor

    def rows(self, selected: Tensor) -> set[int]:
        """Source rows of the groups where `selected` (N,) is True."""
        size = self.rewards.shape[1]
        return {row for (row, _), taken in zip(self.keys[::size], selected, strict=True) if taken}


def gather(samples: Sequence[Sample], names: Sequence[str], size: int) -> Judged:
    """What was judged of all processes' samples, in groups of `size`; all must call it."""
    mine = [(s.key, [s.reward, *(s.parts[name] for name in names)]) for s in samples]
    everything = dict(sorted(entry for part in gather_shares(mine) for entry in part))
    table = torch.tensor(list(everything.values()), dtype=torch.float64)
    table = table.view(-1, size, 1 + len(names))
    return Judged(list(everything), table[..., 0], table[..., 1:])


def without_spread(judged: Judged, options: GRPOOptions) -> set[int]:
    """Rows of which nothing is learnt: no completion is better than another."""
    if options.multi_objective_aggregation == "normalize_then_sum":
        return judged.rows(zero_spread(judged.parts).all(-1))
    return judged.rows(zero_spread(judged.rewards))


def credit_of(judged: Judged, weights: Sequence[float], options: GRPOOptions) -> dict[Key, float]:
    """The advantage of each completion; `weights`: of the parts."""
    if options.multi_objective_aggregation == "normalize_then_sum":
        found = decoupled_advantages(judged.parts, weights)
    else:
        found = advantages(judged.rewards, options.advantage, options.scale)
    return dict(zip(judged.keys, found.flatten().tolist(), strict=True))
