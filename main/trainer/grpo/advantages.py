"""Rewards of N groups of G completions each -> advantages of the completions.

A completion is judged against others of the same prompt, so that no value network is needed. All
functions are pure: (N, G) in, (N, G) float32 out. A group whose rewards are equal says nothing
about what to do better: its advantages are exactly 0 wherever the baseline is its own mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from main.errors import ConfigError

if TYPE_CHECKING:  # options are read without torch, which takes a second to load
    from torch import Tensor

Advantage = Literal["group", "rloo", "reinforce++"]
Scale = Literal["group", "batch", "none"]
Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]
EPSILON = 1e-4  # keeps rewards that hardly differ from exploding


def advantages(rewards: Tensor, kind: Advantage = "group", scale: Scale | None = None) -> Tensor:
    """Advantages by name.

    Args:
        rewards: (N, G), G >= 2.
        scale: what the differences are divided by; by default what the paper of `kind` says.

    Raises:
        ConfigError: a scale that the kind does not have.
    """
    if kind == "rloo":
        return leave_one_out_advantages(rewards, scale or "none")
    if kind == "reinforce++":
        return reinforce_plus_plus_advantages(rewards, scale or "batch")
    return group_advantages(rewards, scale or "group")


def group_advantages(rewards: Tensor, scale: Scale = "group") -> Tensor:
    """A = (r - mean of the group) / (std + 1e-4).

    scale "group": GRPO, arXiv 2402.03300, section 4.1.2. "none": Dr. GRPO, 2503.20783, which
    leaves out the bias towards groups with little spread. "batch": REINFORCE++'s baseline form,
    2501.03262, the std of all rewards. The std has Bessel's correction (G - 1), as in TRL.

    >>> import torch
    >>> group_advantages(torch.tensor([[0.0, 1.0], [3.0, 3.0]]), "none").tolist()
    [[-0.5, 0.5], [0.0, 0.0]]
    """
    return _scaled(_centred(rewards), rewards, scale)


def leave_one_out_advantages(rewards: Tensor, scale: Scale = "none") -> Tensor:
    """A_i = r_i - mean of the other G - 1 rewards of the group: RLOO, arXiv 2402.14740.

    Equals `group_advantages(rewards, "none")` times G / (G - 1).
    """
    count = rewards.shape[1]
    return _scaled(_centred(rewards) * count / (count - 1), rewards, scale)


def reinforce_plus_plus_advantages(rewards: Tensor, scale: Scale = "batch") -> Tensor:
    """A = (r - mean of the batch) / (std of the batch + 1e-4): REINFORCE++, 2501.03262.

    Groups do not matter here: a group of equal rewards above the batch's mean is still reinforced.
    """
    if scale == "group":
        raise ConfigError(
            "scale_rewards='group' does not go with advantage='reinforce++', which normalises over "
            "the batch: use 'batch' or 'none', or advantage='group'."
        )
    return _scaled(_centred(rewards.reshape(1, -1)).view_as(rewards), rewards, scale)


def decoupled_advantages(parts: Tensor, weights: Sequence[float]) -> Tensor:
    """Each of F rewards normalised within its group, then their weighted sum within the batch.

        A_f = (r_f - mean of the group) / (std of the group + 1e-4)
        A = (S - mean of the batch) / (std of the batch + 1e-4),  S = sum_f w_f A_f

    GDPO, arXiv 2601.05242, equations 4 to 6: rewards added up first are told apart by their sum
    alone, and the one with the largest spread decides. Stds have Bessel's correction, as in TRL.

    Args:
        parts: (N, G, F), NaN where a reward does not apply: it is no part of its group's mean.
    """
    known = ~parts.isnan()
    count = known.sum(1, keepdim=True)
    centred = parts.double() - parts.double().nanmean(1, keepdim=True)
    centred = centred.masked_fill(zero_spread(parts)[:, None] | ~known, 0.0)
    spread = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    normalised = centred / (spread + EPSILON)
    total = (normalised * normalised.new_tensor(weights)).sum(-1)
    return _scaled(_centred(total.reshape(1, -1)).view_as(total), total, "batch")


def overlong_penalty(lengths: Tensor, limit: int, cache: int) -> Tensor:
    """0 up to `limit - cache` tokens, then falling to -1 at `limit`: DAPO, 2503.14476, equation 13.

    >>> import torch
    >>> overlong_penalty(torch.tensor([5, 8, 9, 10]), limit=10, cache=4).tolist()
    [0.0, -0.5, -0.75, -1.0]
    """
    return ((limit - cache - lengths) / cache).clamp(-1.0, 0.0)


def zero_spread(rewards: Tensor) -> Tensor:
    """(N,) of (N, G), or (N, F) of (N, G, F), bool: groups whose rewards are all equal.

    Those that are NaN do not count; one alone, or none, has no spread.
    """
    return rewards.nan_to_num(nan=math.inf).amin(1) >= rewards.nan_to_num(nan=-math.inf).amax(1)


def _centred(rewards: Tensor) -> Tensor:
    """Differences from the mean of each row, exactly 0 where the row's rewards are equal."""
    rewards = rewards.double()
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred.masked_fill(zero_spread(rewards)[:, None], 0.0)


def _scaled(centred: Tensor, rewards: Tensor, scale: Scale) -> Tensor:
    if scale == "group":
        centred = centred / (rewards.double().std(1, keepdim=True) + EPSILON)
    elif scale == "batch":
        centred = centred / (rewards.double().std() + EPSILON)
    return centred.float()
