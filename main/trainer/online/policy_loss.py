"""The policy's losses: what each token of a completion contributes, and how tokens are added up.

Shapes: B completions of at most T tokens. `logprobs`, `old_logprobs`, `mask` are (B, T), True =
keep; `advantages` are (B, 1) or (B, T) and carry no gradient. A token's loss is to be minimised.
A variant is a line of `POLICY_LOSSES`, at the end.

With ratio = exp(logprobs - old_logprobs) at the first update (old = current) every surrogate here
has the gradient of -advantage * logprob.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from main.options import KeyOf

if TYPE_CHECKING:  # options are read without torch, which takes a second to load
    from torch import Tensor

Level = Literal["token", "sequence"]
_LOG_TINY = math.log(1e-8)


class Surrogate(NamedTuple):
    """Of every token.

    losses: (B, T), or (B, 1) where ratio and advantages are.
    clipped: the same shape, bool: tokens whose gradient the clip cut off.
    """

    losses: Tensor
    clipped: Tensor


class Sum(NamedTuple):
    """A loss as a sum, and the name and number of what the sum is to be divided by."""

    total: Tensor
    unit: str
    number: int


def importance_ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: Level = "token"
) -> Tensor:
    """exp(logprobs - old_logprobs) of each token (B, T), or of each sequence (B, 1).

    The sequence's ratio is the geometric mean of its tokens': GSPO, arXiv 2507.18071, equation 7.
    """
    log_ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.exp()


def clipped_surrogate(
    ratio: Tensor,
    advantages: Tensor,
    epsilon: float = 0.2,
    epsilon_high: float | None = None,
    delta: float | None = None,
) -> Surrogate:
    """-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A).

    PPO, arXiv 1707.06347, equation 7; with epsilon_high > epsilon the clip-higher of DAPO,
    2503.14476, equation 10. For A < 0 this is the larger of the two losses: a ratio that has left
    the region on the bad side is still pulled back, up to a ratio of `delta` where that is given:
    INTELLECT-2, 2505.07291, section 3.4.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    bounded, limit = ratio.clamp(1 - epsilon, 1 + high), math.inf if delta is None else delta
    losses = -(ratio.clamp(max=limit) * advantages).minimum(bounded * advantages)
    too_low = (ratio < 1 - epsilon) & (advantages < 0)
    too_high = (ratio > 1 + high) & (advantages > 0)
    if delta is not None:
        too_high = too_high | ((ratio > delta) & (advantages < 0))
    return Surrogate(losses, too_low | too_high)


def cispo_surrogate(
    logprobs: Tensor, ratio: Tensor, advantages: Tensor, epsilon_high: float
) -> Surrogate:
    """-min(ratio, epsilon_high) * A * logprob, the weight without gradient.

    CISPO, arXiv 2506.13585, equation 4: every token keeps a gradient, only its weight is bounded.
    As in TRL, `epsilon_high` is the largest weight itself, not a distance from 1.
    """
    weight = ratio.detach().clamp(max=epsilon_high)
    clipped = (ratio > epsilon_high) & (advantages > 0)
    return Surrogate(-weight * advantages * logprobs, clipped)


def sapo_surrogate(
    ratio: Tensor, advantages: Tensor, temperature_positive: float, temperature_negative: float
) -> Surrogate:
    """-4 / tau * sigmoid(tau * (ratio - 1)) * A: SAPO, arXiv 2511.20347, a soft gate, no clip."""
    import torch

    temperature = torch.where(advantages > 0, temperature_positive, temperature_negative)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return Surrogate(-gate * advantages, torch.zeros_like(gate, dtype=torch.bool))


def vespo_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    correction: Tensor | None = None,
    positive: tuple[float, float] = (2.0, 3.0),
    negative: tuple[float, float] = (3.0, 2.0),
) -> Surrogate:
    """-phi(w) * A * logprob with phi(w) = w^k exp(l (1 - w)) of the sequence's whole ratio w.

    VESPO, arXiv 2602.10693: a soft weight that is 1 at w = 1 and falls off on both sides; (k, l) is
    `positive` for A >= 0 and `negative` for A < 0. `correction` (B, T) or (B, 1) is part of w.
    """
    import torch

    log_ratio = (logprobs - old_logprobs).detach().masked_fill(~mask, 0.0).clamp(-20.0, 20.0)
    log_w = log_ratio.sum(1, keepdim=True)
    if correction is not None:
        log_w = log_w + correction.log().clamp(_LOG_TINY, 20.0).sum(1, keepdim=True)
    log_w = log_w.clamp(_LOG_TINY, 20.0)
    power, decay = (torch.where(advantages >= 0, positive[i], negative[i]) for i in (0, 1))
    weight = (decay + power * log_w - decay * log_w.exp()).exp()
    losses = -weight * advantages * logprobs
    return Surrogate(losses, torch.zeros_like(losses, dtype=torch.bool))


# -- how the losses (B, T) or (B, 1) of tokens are added up; L is max_completion_length


def token_mean(losses: Tensor, mask: Tensor, limit: int) -> Sum:
    """Mean over all tokens of the step: every token weighs the same (2503.14476, equation 12)."""
    return Sum(_kept(losses, mask).sum(), "tokens", int(mask.sum()))


def sequence_mean(losses: Tensor, mask: Tensor, limit: int) -> Sum:
    """Mean over a sequence's tokens, then over sequences (2402.03300, equation 3)."""
    means = _kept(losses, mask).sum(1) / mask.sum(1).clamp(min=1)
    return Sum(means.sum(), "sequences", len(mask))


def sequence_sum(losses: Tensor, mask: Tensor, limit: int) -> Sum:
    """Sum over a sequence's tokens, mean over sequences (LUSPO, 2602.05261)."""
    return Sum(_kept(losses, mask).sum(), "sequences", len(mask))


def constant_length(losses: Tensor, mask: Tensor, limit: int) -> Sum:
    """The same divided by L, a constant: length earns nothing (Dr. GRPO, 2503.20783)."""
    return Sum(_kept(losses, mask).sum() / limit, "sequences", len(mask))


def micro_batch_mean(losses: Tensor, mask: Tensor, limit: int) -> Sum:
    """Mean over the tokens of a micro-batch, then over micro-batches, as TRL's 'bnpo'."""
    return Sum(_kept(losses, mask).sum() / max(int(mask.sum()), 1), "micro_batches", 1)


def _kept(losses: Tensor, mask: Tensor) -> Tensor:
    return losses.expand(mask.shape).masked_fill(~mask, 0.0)


# -- the variants


@dataclass(frozen=True)
class Tokens:
    """What a surrogate is computed of: (B, T) each; ratio (B, 1) where it is a sequence's.

    correction: of the sampler, see main/trainer/online/off_policy.py; None = not corrected.
    """

    logprobs: Tensor
    old_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    ratio: Tensor
    correction: Tensor | None = None


class PolicyLoss(NamedTuple):
    """A loss by its name, and what it takes.

    surrogate: tokens and `options` by name -> their losses.
    add_up: losses, mask and max_completion_length -> their sum.
    options: what it reads of the call's arguments; defaults: values of its own for these.
    level: whether the ratio is each token's or the sequence's.
    scale: of the advantages, where the paper says another than the kind of advantage.
    corrects: the surrogate uses the correction itself, instead of being weighed by it.
    """

    surrogate: Callable[..., Surrogate]
    add_up: Callable[[Tensor, Tensor, int], Sum]
    options: tuple[str, ...] = ("epsilon", "epsilon_high", "delta")
    defaults: Mapping[str, float] = MappingProxyType({})
    level: Level = "token"
    scale: Literal["none"] | None = None
    corrects: bool = False

    def of(self, tokens: Tokens, options: Mapping[str, Any]) -> Surrogate:
        """The surrogate with the call's options, corrected for the sampler."""
        given = {name: options[name] for name in self.options}
        given |= {name: v for name, v in self.defaults.items() if given[name] is None}
        losses, clipped = self.surrogate(tokens, **given)
        if tokens.correction is not None and not self.corrects:
            losses = losses * tokens.correction
        return Surrogate(losses, clipped)


def _clipped(
    t: Tokens, epsilon: float, epsilon_high: float | None, delta: float | None
) -> Surrogate:
    return clipped_surrogate(t.ratio, t.advantages, epsilon, epsilon_high, delta)


def _cispo(t: Tokens, epsilon_high: float) -> Surrogate:
    return cispo_surrogate(t.logprobs, t.ratio, t.advantages, epsilon_high)


def _sapo(t: Tokens, sapo_temperature_pos: float, sapo_temperature_neg: float) -> Surrogate:
    return sapo_surrogate(t.ratio, t.advantages, sapo_temperature_pos, sapo_temperature_neg)


def _vespo(
    t: Tokens,
    vespo_k_pos: float,
    vespo_lambda_pos: float,
    vespo_k_neg: float,
    vespo_lambda_neg: float,
) -> Surrogate:
    positive, negative = (vespo_k_pos, vespo_lambda_pos), (vespo_k_neg, vespo_lambda_neg)
    tokens = t.logprobs, t.old_logprobs, t.advantages, t.mask, t.correction
    return vespo_surrogate(*tokens, positive, negative)


VESPO = ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
SAPO = ("sapo_temperature_pos", "sapo_temperature_neg")
POLICY_LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(_clipped, sequence_mean),
    "dr_grpo": PolicyLoss(_clipped, constant_length, scale="none"),
    "dapo": PolicyLoss(_clipped, token_mean),
    "bnpo": PolicyLoss(_clipped, micro_batch_mean),
    "gspo": PolicyLoss(_clipped, sequence_mean, level="sequence"),
    # 5 is what ScaleRL recommends (2510.13786).
    "cispo": PolicyLoss(_cispo, token_mean, ("epsilon_high",), {"epsilon_high": 5.0}),
    "sapo": PolicyLoss(_sapo, sequence_mean, SAPO),
    "luspo": PolicyLoss(_clipped, sequence_sum, level="sequence"),
    "vespo": PolicyLoss(_vespo, token_mean, VESPO, corrects=True),
}
LOSS_OPTIONS = tuple(
    dict.fromkeys(name for loss in POLICY_LOSSES.values() for name in loss.options)
)
LossType = Annotated[str, KeyOf(POLICY_LOSSES)]
