"""Tokens that another policy drew: the sampler's probabilities, and an older policy's sequences.

Shapes: B completions of at most T tokens; log-probabilities and `mask` are (B, T), True = keep. A
token whose sampling log-probability is unknown (NaN) counts as drawn by the trainer itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from main.options import Options, below, not_positive

if TYPE_CHECKING:  # options are read without torch, which takes a second to load
    from torch import Tensor

Correction = Literal["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(kw_only=True)
class CorrectionOptions(Options):
    """How the loss is corrected for a sampler whose probabilities differ from the trainer's.

    importance_sampling_cap: largest correction; None does not correct.
    importance_sampling_floor: smallest correction; None is no bound.
    importance_sampling_mode: a correction outside of the two is set to the bound ('..._truncate')
        or to 0 ('..._mask'); that of a token, or of the whole completion ('sequence_...').
    """

    importance_sampling_cap: float | None = 2.0
    importance_sampling_floor: float | None = None
    importance_sampling_mode: Correction = "token_truncate"

    def problems(self) -> list[str]:
        found = not_positive(self, ["importance_sampling_cap"])
        found += below(self, {"importance_sampling_floor": 0})
        cap, floor = self.importance_sampling_cap, self.importance_sampling_floor
        if cap is not None and floor is not None and floor > cap:
            found.append(
                f"importance_sampling_floor={floor} must not exceed importance_sampling_cap={cap}."
            )
        return found

    def without_effect(self) -> dict[str, str]:
        names = ("importance_sampling_floor", "importance_sampling_mode")
        cause = "importance_sampling_cap=None"
        found = {} if self.importance_sampling_cap is not None else dict.fromkeys(names, cause)
        return super().without_effect() | found

    def correction(self, old: Tensor, sampling: Tensor, mask: Tensor) -> Tensor | None:
        """`sampling_correction` as asked for; None where it is not."""
        cap = self.importance_sampling_cap
        if cap is None:
            return None
        floor, mode = self.importance_sampling_floor, self.importance_sampling_mode
        return sampling_correction(old, sampling, mask, cap, floor, mode)


def sampling_correction(
    old_logprobs: Tensor,
    sampling_logprobs: Tensor,
    mask: Tensor,
    cap: float = math.inf,
    floor: float | None = None,
    mode: Correction = "token_truncate",
) -> Tensor:
    """exp(old_logprobs - sampling_logprobs), bounded, without gradient: (B, T), or (B, 1) of
    sequences, whose ratio is the product of their tokens'.

    Importance sampling where the sampler's probabilities are not quite the trainer's (other
    kernels, other precision, a repetition penalty). Truncated: Ionides, "Truncated Importance
    Sampling" (2008); for rollouts of language models LlamaRL, arXiv 2505.24034. Masked, that is
    dropped beyond the bounds: IcePop, arXiv 2510.18855.
    """
    difference = _difference(old_logprobs, sampling_logprobs, mask)
    level, _, bound = mode.partition("_")
    ratio = (difference.sum(1, keepdim=True) if level == "sequence" else difference).exp()
    if bound == "truncate":
        return ratio.clamp(min=floor, max=cap)
    lowest = -math.inf if floor is None else floor
    return ratio.masked_fill((ratio < lowest) | (ratio > cap), 0.0)


def near_policy(
    logprobs: Tensor, sampling_logprobs: Tensor, advantages: Tensor, mask: Tensor, threshold: float
) -> Tensor:
    """(B, 1) bool: what is kept of sequences that another policy drew.

    Those of A >= 0, and of the others those that the policy is still near to: mean over the tokens
    of sampling_logprobs - logprobs <= threshold. DeepSeek-V3.2, arXiv 2512.02556, equation 9.

    Args:
        advantages: (B, T) or (B, 1), of one sign in a sequence.
    """
    apart = _difference(sampling_logprobs, logprobs, mask).sum(1, keepdim=True)
    apart = apart / mask.sum(1, keepdim=True).clamp(min=1)
    return (advantages[:, :1] >= 0) | (apart <= threshold)


def _difference(one: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    return (one - other).detach().masked_fill(~mask, 0.0).nan_to_num(nan=0.0)
