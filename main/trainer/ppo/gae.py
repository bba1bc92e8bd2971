"""Credit of PPO: rewards of tokens, generalised advantage estimation, the critic's loss.

Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
arXiv 1506.02438, and "Proximal Policy Optimization Algorithms", arXiv 1707.06347.

Shapes: B completions of at most T tokens, padded on the right; `mask` (B, T) is True on their
tokens. `values[b, t]` is the critic's value of the state *before* token t.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from main.trainer.online.statistics import Moments, moments
from main.trainer.ppo.options import Placement


class Credit(NamedTuple):
    """advantages, returns: (B, T), 0 outside the mask; returns = advantages + values."""

    advantages: Tensor
    returns: Tensor


def place_scores(scores: Tensor, mask: Tensor, placement: Placement) -> Tensor:
    """A completion's score (B,) as rewards (B, T) of its tokens; either way they sum to the score.

    'last' puts it on the last real token, 'every' spreads it evenly over the tokens.
    """
    lengths = mask.sum(1, keepdim=True)
    if placement == "every":
        return scores[:, None] / lengths.clamp(min=1) * mask
    return scores[:, None] * _is_last(mask)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    last_values: Tensor,
    discount: float = 1.0,
    gae_lambda: float = 1.0,
) -> Credit:
    """Advantages and returns, each sequence walked back from its own end.

        delta_t = r_t + discount * V_{t+1} - V_t
        A_t = delta_t + discount * gae_lambda * A_{t+1}             (1506.02438, equation 16)

    Args:
        rewards, values, mask: (B, T).
        last_values: (B,), the value after the last token: 0 where the completion ended, the
            critic's V where the length limit cut it, which is not an end of the episode.
    """
    values, rewards = values * mask, rewards * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    following = torch.where(_is_last(mask), last_values[:, None], following)
    deltas = (rewards + discount * following - values) * mask
    advantages = torch.zeros_like(values)
    ahead = torch.zeros_like(last_values)
    for t in reversed(range(mask.shape[1])):
        ahead = deltas[:, t] + discount * gae_lambda * ahead
        advantages[:, t] = ahead
    return Credit(advantages, advantages + values)


def _is_last(mask: Tensor) -> Tensor:
    """(B, T), True on the last token of each sequence."""
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    return mask & ~following


def whiten(advantages: Tensor, over: Moments, shift_mean: bool = True) -> Tensor:
    """Advantages of spread 1, and of mean 0 unless `shift_mean` is False.

    Without the shift they are divided by their root mean square: every sign is kept.
    """
    if shift_mean:
        return (advantages - over.mean) / (over.variance + 1e-8) ** 0.5
    return advantages / (over.variance + over.mean**2 + 1e-8) ** 0.5


def value_losses(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None = None
) -> Tensor:
    """max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2) / 2 of each token, any shape.

    Clipping the value as PPO's published code does: a token whose value has moved further than c
    from the old one has no gradient, unless it moved away from the return. None: plain (V - R)^2/2.
    """
    losses = (values - returns).square()
    if clip is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        losses = torch.maximum(losses, (bounded - returns).square())
    return losses / 2


def explained_variance(values: Sequence[Tensor], returns: Sequence[Tensor]) -> float:
    """1 - Var(R - V) / Var(R): 1 = the critic foresaw the returns, 0 = no better than their mean.

    Over all processes; 0 where the returns are all alike and there is nothing to explain.
    """
    spread = moments(returns).variance
    rest = moments([r - v for r, v in zip(returns, values, strict=True)]).variance
    return 1 - rest / spread if spread > 1e-12 else 0.0
