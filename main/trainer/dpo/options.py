"""What main.trainer.dpo accepts, and which options go with which loss."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from main.errors import ConfigError
from main.loaders import get_loader
from main.options import KeyOf, below, not_positive
from main.trainer.arguments import LoopOptions, SetupOptions
from main.trainer.dpo.losses import PAIR_LOSSES, Divergence, PairLoss, sft

if TYPE_CHECKING:
    from torch import Tensor

    from main.trainer.dpo.scores import PairSums

LossType = Annotated[str, KeyOf(PAIR_LOSSES, "kto")]
_KTO = ("desirable_weight", "undesirable_weight")


@dataclass(kw_only=True)
class PreferenceSetup(SetupOptions):
    """Arguments of the constructor, those of `SetupOptions`.

    loader_name: LLM_DPO or LLM_RLHF (pairs), or LLM_KTO (single answers with a label).
    """

    loader_name: str = "LLM_DPO"


@dataclass(kw_only=True)
class PreferenceOptions(LoopOptions):
    """Arguments of the call, beside those of `LoopOptions`.

    beta: strength of the pull to the reference, usually 0.1 to 0.5; IPO's tau, ORPO's lambda,
        SimPO's scale (there 2 to 10).
    loss_type: a loss of main/trainer/dpo/losses.py, or a list of them that are added; 'orpo' and
        'simpo' need no reference, 'kto' takes single answers, or the answers of pairs one by one.
        What is recorded as rewards belongs to the first.
    loss_weights: a factor for each loss of the list; 1 by default.
    f_divergence_type: of the policy to its reference: 'reverse_kl' (DPO), 'forward_kl',
        'js_divergence' or 'alpha_divergence' with f_alpha_divergence_coef; for losses of a margin
        (`under_divergence` in main/trainer/dpo/scores.py).
    ld_alpha: weight of the tokens that one answer has beyond the length of the other; None is 1.
    use_weighting: weigh a pair by how likely the policy is to write it itself (WPO).
    label_smoothing: share of wrong labels, for 'sigmoid' (conservative), 'robust', 'exo_pair'.
    length_normalized: compare means over an answer's tokens instead of sums; by default only
        'ipo', 'orpo' and 'simpo' do.
    sft_weight: of the mean negative log-likelihood of the chosen answer; by default 1 for 'orpo',
        else 0.
    simpo_gamma, discopop_tau: the target margin of 'simpo', the blend of 'discopop'.
    desirable_weight, undesirable_weight: of good and bad answers in 'kto'.
    share_prompt: compute the prompt of a pair once, where the model's attention allows it.
    """

    lr: float = 5e-5
    beta: float = 0.1
    loss_type: LossType | list = "sigmoid"
    loss_weights: list | None = None
    f_divergence_type: Divergence = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    label_smoothing: float | None = None
    length_normalized: bool | None = None
    sft_weight: float | None = None
    simpo_gamma: float | None = None
    discopop_tau: float | None = None
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    share_prompt: bool = True

    def problems(self) -> list[str]:
        return super().problems() + (self._names() or self._bounds())

    def _names(self) -> list[str]:
        """What is wrong with a list of losses."""
        names, weights = self.loss_types, self.loss_weights
        if unknown := [name for name in names if name not in PAIR_LOSSES and name != "kto"]:
            return [f"loss_type has {unknown}: every entry must be one of {list(PAIR_LOSSES)}."]
        if not names or len(set(names)) < len(names) or ("kto" in names and len(names) > 1):
            return [
                f"loss_type={self.loss_type} must name different losses of pairs; 'kto' stands "
                "alone, as it takes single answers."
            ]
        if weights is None:
            return []
        if len(weights) != len(names):
            return [f"loss_weights has {len(weights)} entries for {len(names)} losses."]
        if not all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights):
            return [f"loss_weights={weights} must be numbers of 0 or more."]
        return []

    def _bounds(self) -> list[str]:
        found = [] if self.beta > 0 else [f"beta={self.beta} must be above 0; 0.1 is usual."]
        smoothing = self.label_smoothing or 0.0
        if not 0 <= smoothing < 0.5:
            found.append(f"label_smoothing={smoothing} must be at least 0 and below 0.5.")
        if "exo_pair" in self.loss_types and not smoothing:
            found.append("loss_type='exo_pair' needs label_smoothing above 0; 1e-3 is usual.")
        if self.ld_alpha is not None and not 0 <= self.ld_alpha <= 1:
            found.append(f"ld_alpha={self.ld_alpha} must be from 0 to 1.")
        found += below(self, dict.fromkeys(("sft_weight", *_KTO), 0))
        return found + not_positive(self, ["discopop_tau"])

    def without_effect(self) -> dict[str, str]:
        """What no loss reads."""
        pairs = self.pair_losses
        read = {name for pair in pairs for name in pair.options}
        unread = [n for n in ("label_smoothing", "simpo_gamma", "discopop_tau") if n not in read]
        if not pairs:
            unread += ["sft_weight", "length_normalized", "ld_alpha", "use_weighting"]
        else:
            unread += _KTO
            own = {pair.per_token for pair in pairs} == {self.length_normalized}
            if not any(pair.either for pair in pairs) and not own:
                unread.append("length_normalized")
        if not any(pair.either and pair.reference for pair in pairs):
            unread += ["f_divergence_type", "f_alpha_divergence_coef"]
        found = dict.fromkeys(unread, f"loss_type={self.loss_type!r}")
        if self.f_divergence_type != "alpha_divergence":
            cause = f"f_divergence_type={self.f_divergence_type!r}"
            found.setdefault("f_alpha_divergence_coef", cause)
        if set(self.loss_types) == {"sft"}:
            found["beta"] = f"loss_type={self.loss_type!r}"
        if isinstance(self.loss_type, str):
            found["loss_weights"] = "one loss_type"
        return super().without_effect() | found

    def check_loader(self, loader_name: str) -> None:
        """Raises ConfigError: a loss of pairs on single answers."""
        if "label" in get_loader(loader_name).columns and self.pair_losses:
            raise ConfigError(
                f"loss_type={self.loss_type!r} compares pairs, and loader_name={loader_name!r} "
                "reads single answers. Use loss_type='kto', or LLM_DPO rows."
            )

    @property
    def loss_types(self) -> list[str]:
        given = self.loss_type
        return [given] if isinstance(given, str) else [str(name) for name in given]

    @property
    def pair_losses(self) -> list[PairLoss]:
        """None of them for KTO."""
        return [PAIR_LOSSES[name] for name in self.loss_types if name in PAIR_LOSSES]

    @property
    def needs_reference(self) -> bool:
        return not self.pair_losses or any(pair.reference for pair in self.pair_losses)

    def scores(self, pair: PairLoss, sums: "PairSums") -> "Tensor":
        """(B, 2), what the loss compares."""
        from main.trainer.dpo.scores import under_divergence

        scores = sums.ratios() if pair.reference else sums.sums
        if pair.either and pair.reference:
            scores = under_divergence(scores, self.f_divergence_type, self.f_alpha_divergence_coef)
        chosen = self.length_normalized
        per_token = pair.per_token if chosen is None or not pair.either else chosen
        return scores / sums.lengths if per_token else scores

    def losses(self, sums: "PairSums") -> "Tensor":
        """(B,), the weighted sum over the losses with the SFT term."""
        weights = self.loss_weights or [1.0] * len(self.pair_losses)
        parts = [w * self._loss(p, sums) for w, p in zip(weights, self.pair_losses, strict=True)]
        if weight := self._sft_weight():
            parts.append(weight * sft(sums.means[:, 0]))
        total = sum(parts[1:], parts[0])
        return total if sums.weights is None else total * sums.weights

    def _loss(self, pair: PairLoss, sums: "PairSums") -> "Tensor":
        given: dict[str, Any] = {n: getattr(self, n) for n in pair.options}
        given = {name: value for name, value in given.items() if value is not None}
        scores = self.scores(pair, sums)
        return pair.function(scores[:, 0], scores[:, 1], self.beta, **given)

    def _sft_weight(self) -> float:
        if self.sft_weight is not None:
            return self.sft_weight
        return max(pair.sft_weight for pair in self.pair_losses)
