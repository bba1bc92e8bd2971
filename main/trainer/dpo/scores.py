"""From log-probabilities of the tokens of pairs to the scores that a loss compares.

Shapes: B pairs, their answers chosen, rejected, chosen, ...; N tokens of all of them; (B, 2) where
one number is each answer's.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from main.trainer.dpo.losses import Divergence, logsigmoid
from main.trainer.policy.logprobs import TokenLogprobs

_LARGEST = 80.0  # of an exponent, so that float32 holds the power


class PairSums(NamedTuple):
    """Of B pairs, (B, 2) each.

    means: log-probability of a token, without a reference; weights: of each pair, (B,), or None.
    sums: over the answer; reference: the same by the reference, 0 without one.
    lengths: tokens.
    """

    sums: Tensor
    reference: Tensor | float
    means: Tensor
    lengths: Tensor
    weights: Tensor | None = None

    def ratios(self) -> Tensor:
        return self.sums - self.reference


def answer_tokens(
    model: nn.Module,
    input_ids: Tensor,
    branch: Tensor,
    lengths: Sequence[int],
    position_ids: Tensor | None = None,
    rows: Sequence[Sequence[int]] | None = None,
    **wanted: Any,
) -> TokenLogprobs:
    """Of all tokens of the B * A answers, in order, by a `LogprobModel`; `wanted`: what else."""
    inputs = {} if position_ids is None else {"branch": branch, "position_ids": position_ids}
    return model(input_ids=input_ids, loss_mask=branch > 0, lengths=rows, **inputs, **wanted)


def sums_of(logprobs: Tensor, lengths: Sequence[int], tail: float | None = None) -> Tensor:
    """(2B,) sums of the (N,) tokens; `tail` weighs those beyond the shorter answer of a pair.

    LD-DPO, arXiv 2409.06411, equation 10: what an answer says longer than the other counts less.
    """
    if tail is not None:
        logprobs = logprobs * tail_weights(lengths, tail).to(logprobs.device)
    return torch.stack([part.sum() for part in logprobs.split(list(lengths))])


def tail_weights(lengths: Sequence[int], tail: float) -> Tensor:
    """(N,): 1 up to the length of the shorter answer of each pair, then `tail`.

    >>> tail_weights([3, 1], 0.5).tolist()
    [1.0, 0.5, 0.5, 1.0]
    """
    shared = [min(lengths[i - i % 2 : i - i % 2 + 2]) for i in range(len(lengths))]
    parts = [
        torch.cat([torch.ones(short), torch.full((length - short,), tail)])
        for length, short in zip(lengths, shared, strict=True)
    ]
    return torch.cat(parts)


def on_policy_weights(logprobs: Tensor, concentration: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B,) without gradient: how likely the policy itself is to write the two answers.

    exp of the mean over an answer's tokens of log p - log sum_v p_v^2, chosen times rejected: WPO,
    arXiv 2406.11827, equation 2 in its aligned form.

    Args:
        concentration: (N,), log sum_v p_v^2.
    """
    parts = (logprobs.detach() - concentration).split(list(lengths))
    return torch.stack([part.mean() for part in parts]).view(-1, 2).sum(1).exp()


def under_divergence(ratios: Tensor, kind: Divergence, alpha: float) -> Tensor:
    """f'(t) of t = pi / pi_ref, up to a constant; `ratios` are log t, any shape.

    f-DPO, arXiv 2309.16240, table 1. 'reverse_kl' is DPO's log t; alpha near 1 is the same.
    """
    if kind == "forward_kl":
        return 1 - (-ratios).clamp(max=_LARGEST).exp()
    if kind == "js_divergence":
        return math.log(2) + logsigmoid(ratios)
    if kind == "alpha_divergence" and abs(alpha - 1) > 1e-6:
        return (((alpha - 1) * ratios).clamp(max=_LARGEST).exp() - 1) / (alpha - 1)
    return ratios
