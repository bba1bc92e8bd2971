"""Preference losses: pure functions of sequence scores.

A score s (B,) is what a loss compares: with a reference log pi(y|x) - log pi_ref(y|x), without one
log pi(y|x); summed over the answer's tokens, or their mean (`per_token`). The implicit reward is
beta * s. m = s(chosen) - s(rejected); sigma is the logistic function. All return one loss a pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # options are read without torch, which takes a second to load
    from torch import Tensor

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]


def logsigmoid(score: Tensor) -> Tensor:
    from torch.nn import functional

    return functional.logsigmoid(score)


def sigmoid(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO: -log sigma(beta m). arXiv 2305.18290, eq. 7; ln 2 where policy and reference agree.

    label_smoothing: probability that a label is wrong, the conservative form (cDPO, E. Mitchell
        2023): -(1 - e) log sigma(beta m) - e log sigma(-beta m).
    """
    margin = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def robust(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """rDPO: unbiased under labels flipped with probability e < 1/2. arXiv 2403.00409.

    (-(1 - e) log sigma(beta m) + e log sigma(-beta m)) / (1 - 2e); `sigmoid` where e = 0.
    """
    margin = beta * (chosen - rejected)
    kept = -(1 - label_smoothing) * logsigmoid(margin)
    return (kept + label_smoothing * logsigmoid(-margin)) / (1 - 2 * label_smoothing)


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """IPO: (m - 1 / (2 beta))^2; beta is the paper's tau. arXiv 2310.12036, eq. 17."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def hinge(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta m): SLiC's loss (arXiv 2305.10425) on normalised scores (RSO, 2309.06657)."""
    return (1 - beta * (chosen - rejected)).relu()


def exo_pair(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float) -> Tensor:
    """EXO: KL(policy || labels) over the pair, labels (1 - e, e). arXiv 2402.00856, eq. 16."""
    import torch

    margin = beta * (chosen - rejected)
    labels = torch.log(margin.new_tensor([1 - label_smoothing, label_smoothing]))
    policy = torch.stack([logsigmoid(margin), logsigmoid(-margin)], dim=-1)  # (B, 2)
    return (policy.exp() * (policy - labels)).sum(-1)


def nca_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """NCA for two answers: absolute rewards, not the margin alone. arXiv 2402.05369.

    -log sigma(beta s_c) - (log sigma(-beta s_c) + log sigma(-beta s_r)) / 2
    """
    chosen, rejected = beta * chosen, beta * rejected
    return -logsigmoid(chosen) - 0.5 * (logsigmoid(-chosen) + logsigmoid(-rejected))


def bco_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """BCO, a classifier of the two rewards, without the paper's shift. arXiv 2404.04656."""
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_hard(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """SPPO with the winner's probability 1: (s_c - 1/(2 beta))^2 + (s_r + 1/(2 beta))^2.

    arXiv 2405.00675, eq. 4.7; beta is 1 / eta.
    """
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO: chosen up, rejected down. arXiv 2408.06266, eq. 7."""
    return (-beta * chosen).sigmoid() + (beta * rejected).sigmoid()


def apo_down(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """APO for a policy better than the chosen answers: both down. arXiv 2408.06266, eq. 8."""
    return (beta * chosen).sigmoid() + (-beta * (chosen - rejected)).sigmoid()


def discopop(chosen: Tensor, rejected: Tensor, beta: float, discopop_tau: float = 0.05) -> Tensor:
    """DiscoPOP: logistic and exponential loss, blended by the margin. arXiv 2406.08414, eq. 5."""
    margin = beta * (chosen - rejected)
    blend = (margin / discopop_tau).sigmoid()
    return -(1 - blend) * logsigmoid(margin) + blend * (-margin).exp()


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """ORPO's odds ratio term; scores are mean log-probabilities. arXiv 2403.07691, eq. 4 and 7.

    -beta log sigma(log odds(chosen) - log odds(rejected)), odds = p / (1 - p); beta is lambda. The
    other term of eq. 6 is `sft` with weight 1.
    """
    return -beta * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, simpo_gamma: float = 0.5) -> Tensor:
    """SimPO: -log sigma(beta m - gamma), scores are means. arXiv 2405.14734, eq. 6."""
    return -logsigmoid(beta * (chosen - rejected) - simpo_gamma)


def sft(chosen: Tensor) -> Tensor:
    """Minus the mean log-probability of each chosen answer's tokens. arXiv 2404.19733, eq. 1."""
    return -chosen


def sft_pair(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """`sft` among the losses of pairs: it reads neither the rejected answers nor beta."""
    return sft(chosen)


def kto(
    ratio: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO on unpaired answers. arXiv 2402.01306, eq. 7.

    Args:
        ratio: (B,) log pi(y|x) - log pi_ref(y|x).
        desirable: (B,) bool.
        kl: the reference point z, not negative: the mean ratio of mismatched answers; constant.
    """
    import torch

    signed = torch.where(desirable, ratio - kl, kl - ratio)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * (1 - (beta * signed).sigmoid())


def _log_odds(logprob: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p; accurate near p = 0 and p = 1."""
    logprob = logprob.clamp(max=-1e-6)  # p = 1 has no odds
    return logprob - (-logprob.expm1()).log()


class PairLoss(NamedTuple):
    """A loss by its name, and what it takes.

    options: arguments beside beta.
    reference: whether scores are relative to a reference policy.
    per_token: scores are means by default.
    either: it compares a margin alone, so that means, sums and other divergences are meaningful.
    sft_weight: default weight of the `sft` term.
    """

    function: Callable[..., Tensor]
    options: tuple[str, ...] = ()
    reference: bool = True
    per_token: bool = False
    either: bool = False
    sft_weight: float = 0.0


PAIR_LOSSES: dict[str, PairLoss] = {
    "sigmoid": PairLoss(sigmoid, ("label_smoothing",), either=True),
    "sigmoid_norm": PairLoss(sigmoid, ("label_smoothing",), per_token=True, either=True),
    "robust": PairLoss(robust, ("label_smoothing",), either=True),
    # The sum would make the target 1 / (2 beta) depend on the length of the answers.
    "ipo": PairLoss(ipo, per_token=True, either=True),
    "hinge": PairLoss(hinge, either=True),
    "exo_pair": PairLoss(exo_pair, ("label_smoothing",), either=True),
    "nca_pair": PairLoss(nca_pair),
    "bco_pair": PairLoss(bco_pair),
    "sppo_hard": PairLoss(sppo_hard),
    "apo_zero": PairLoss(apo_zero),
    "apo_down": PairLoss(apo_down),
    "discopop": PairLoss(discopop, ("discopop_tau",), either=True),
    "orpo": PairLoss(orpo, reference=False, per_token=True, sft_weight=1.0),
    "sft": PairLoss(sft_pair, reference=False, per_token=True),
    "simpo": PairLoss(simpo, ("simpo_gamma",), reference=False, per_token=True),
}
