"""Estimators of the divergence KL(policy || reference) from tokens that the policy drew.

John Schulman, "Approximating KL Divergence" (2020), with r = p_reference / p_policy:

    k1 = -log r             unbiased, may be negative for a token
    k2 = (log r)^2 / 2      biased, low variance; its gradient is that of the true divergence
    k3 = (r - 1) - log r    unbiased, never negative
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:  # options are read without torch, which takes a second to load
    from torch import Tensor

KLEstimator = Literal["k1", "k2", "k3"]
KL_ESTIMATORS: tuple[str, ...] = get_args(KLEstimator)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """The divergence at each token, nats.

    Args:
        logprobs, ref_logprobs: any shape, of tokens drawn from the policy; a gradient flows
            through `logprobs`.
    """
    log_ratio = ref_logprobs - logprobs
    if estimator == "k1":
        return -log_ratio
    if estimator == "k2":
        return log_ratio.square() / 2
    return log_ratio.exp() - 1 - log_ratio


def adapted_coefficient(coefficient: float, found: float, target: float) -> float:
    """The weight of a divergence that is to stay near `target`, after a batch that had `found`.

    coefficient * (1 + 0.1 * clip(found / target - 1, -0.2, 0.2)): Ziegler et al., "Fine-Tuning
    Language Models from Human Preferences", arXiv 1909.08593, section 2.2.
    """
    error = min(max(found / target - 1, -0.2), 0.2)
    return coefficient * (1 + 0.1 * error)
