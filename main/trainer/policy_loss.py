"""The policy's losses: what each token of a completion contributes, and how tokens are added up.

Shapes: B completions of at most T tokens. `logprobs`, `old_logprobs`, `mask` are (B, T), True =
keep; `advantages` are (B, 1) or (B, T) and carry no gradient. A token's loss is to be minimised.

With ratio = exp(logprobs - old_logprobs) at the first update (old = current) every surrogate here
has the gradient of -advantage * logprob.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo", "sapo", "luspo", "vespo"]
Level = Literal["token", "sequence"]
_LOG_TINY = math.log(1e-8)
SEQUENCE_LEVEL = ("gspo", "luspo")  # one ratio a sequence


class Surrogate(NamedTuple):
    """Of every token.

    losses: (B, T) or, for a sequence-level ratio, (B, 1).
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
    ratio: Tensor, advantages: Tensor, epsilon: float = 0.2, epsilon_high: float | None = None
) -> Surrogate:
    """-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon_high) * A).

    PPO, arXiv 1707.06347, equation 7; with epsilon_high > epsilon the clip-higher of DAPO,
    2503.14476, equation 10. For A < 0 this is the larger of the two losses: a ratio that has left
    the region on the bad side is still pulled back.
    """
    high = epsilon if epsilon_high is None else epsilon_high
    bounded = ratio.clamp(1 - epsilon, 1 + high)
    losses = -torch.minimum(ratio * advantages, bounded * advantages)
    too_low = (ratio < 1 - epsilon) & (advantages < 0)
    too_high = (ratio > 1 + high) & (advantages > 0)
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
    temperature = torch.where(advantages > 0, temperature_positive, temperature_negative)
    gate = torch.sigmoid(temperature * (ratio - 1)) * 4 / temperature
    return Surrogate(-gate * advantages, torch.zeros_like(gate, dtype=torch.bool))


def vespo_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    correction: Tensor | None = None,
) -> Surrogate:
    """-phi(w) * A * logprob with phi(w) = w^k exp(k' (1 - w)) of the sequence's whole ratio w.

    VESPO, arXiv 2602.10693: a soft weight that is 1 at w = 1 and falls off on both sides; (k, k') =
    (2, 3) for A >= 0 and (3, 2) for A < 0. `correction` (B, T) is part of w.
    """
    log_ratio = (logprobs - old_logprobs).detach().masked_fill(~mask, 0.0).clamp(-20.0, 20.0)
    log_w = log_ratio.sum(1, keepdim=True)
    if correction is not None:
        log_w = log_w + correction.log().clamp(_LOG_TINY, 20.0).sum(1, keepdim=True)
    log_w = log_w.clamp(_LOG_TINY, 20.0)
    power = torch.where(advantages >= 0, 2.0, 3.0)
    decay = torch.where(advantages >= 0, 3.0, 2.0)
    weight = (decay + power * log_w - decay * log_w.exp()).exp()
    losses = -weight * advantages * logprobs
    return Surrogate(losses, torch.zeros_like(losses, dtype=torch.bool))


def sampling_correction(
    old_logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, cap: float
) -> Tensor:
    """min(exp(old_logprobs - sampling_logprobs), cap) of each token, without gradient.

    Truncated importance sampling: the sampler's probabilities are not quite the trainer's (other
    kernels, other precision, a repetition penalty). Ionides, "Truncated Importance Sampling"
    (2008); for rollouts of language models LlamaRL, arXiv 2505.24034. A token whose sampling
    log-probability is unknown (NaN) is not corrected.
    """
    difference = (old_logprobs - sampling_logprobs).detach().masked_fill(~mask, 0.0)
    return difference.nan_to_num(nan=0.0).exp().clamp(max=cap)


def add_up(losses: Tensor, mask: Tensor, loss_type: LossType, max_completion_length: int) -> Sum:
    """The sum of the tokens' losses (B, T) or (B, 1), in the weights of `loss_type`.

    grpo, gspo, sapo: mean over a sequence's tokens, then over sequences (2402.03300, equation 3).
    dapo, cispo, vespo: mean over all tokens of the step, so that every token weighs the same
        (2503.14476, equation 12).
    bnpo: mean over the tokens of a micro-batch, then over micro-batches, as in TRL.
    luspo: sum over a sequence's tokens, mean over sequences (2602.05261).
    dr_grpo: the same, divided by max_completion_length, a constant, so that length earns nothing
        (2503.20783).
    """
    kept = losses.expand(mask.shape).masked_fill(~mask, 0.0)
    sequences, tokens = len(mask), int(mask.sum())
    if loss_type in ("dapo", "cispo", "vespo"):
        return Sum(kept.sum(), "tokens", tokens)
    if loss_type == "bnpo":
        return Sum(kept.sum() / max(tokens, 1), "micro_batches", 1)
    if loss_type == "luspo":
        return Sum(kept.sum(), "sequences", sequences)
    if loss_type == "dr_grpo":
        return Sum(kept.sum() / max_completion_length, "sequences", sequences)
    return Sum((kept.sum(1) / mask.sum(1).clamp(min=1)).sum(), "sequences", sequences)
