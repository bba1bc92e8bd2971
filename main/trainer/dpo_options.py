"""What main.trainer.dpo accepts, and which options go with which loss."""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from main.errors import ConfigError
from main.options import below, not_positive
from main.trainer.arguments import LoopOptions, SetupOptions
from main.trainer.losses import PAIR_LOSSES, PairLoss, sft

LossType = Literal[
    "sigmoid", "robust", "ipo", "hinge", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "discopop", "orpo", "simpo", "kto",
]  # fmt: skip
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
    loss_type: a loss of main/trainer/losses.py; 'orpo' and 'simpo' need no reference, 'kto' takes
        single answers, or the answers of pairs one by one.
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
    loss_type: LossType = "sigmoid"
    label_smoothing: float | None = None
    length_normalized: bool | None = None
    sft_weight: float | None = None
    simpo_gamma: float | None = None
    discopop_tau: float | None = None
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    share_prompt: bool = True

    def problems(self) -> list[str]:
        return super().problems() + self._bounds() + self._misplaced()

    def _bounds(self) -> list[str]:
        found = [] if self.beta > 0 else [f"beta={self.beta} must be above 0; 0.1 is usual."]
        smoothing = self.label_smoothing or 0.0
        if not 0 <= smoothing < 0.5:
            found.append(f"label_smoothing={smoothing} must be at least 0 and below 0.5.")
        if self.loss_type == "exo_pair" and not smoothing:
            found.append("loss_type='exo_pair' needs label_smoothing above 0; 1e-3 is usual.")
        found += below(self, dict.fromkeys(("sft_weight", *_KTO), 0))
        return found + not_positive(self, ["discopop_tau"])

    def _misplaced(self) -> list[str]:
        """An option that the loss does not read would be accepted and ignored."""
        pair = self.pair_loss
        wrong = [
            name
            for name in ("label_smoothing", "simpo_gamma", "discopop_tau")
            if getattr(self, name) is not None and name not in (pair.options if pair else ())
        ]
        if not pair:
            wrong += [n for n in ("sft_weight", "length_normalized") if getattr(self, n)]
        elif self.length_normalized not in (None, pair.per_token) and not pair.either:
            wrong.append("length_normalized")
        if pair:
            wrong += [name for name in _KTO if getattr(self, name) != 1.0]
        return [f"{name} has no meaning in loss_type={self.loss_type!r}." for name in wrong]

    def check_loader(self, loader_name: str) -> None:
        """Raises ConfigError: a loss of pairs on single answers."""
        if loader_name == "LLM_KTO" and self.pair_loss:
            raise ConfigError(
                f"loss_type={self.loss_type!r} compares pairs, and loader_name='LLM_KTO' reads "
                "single answers. Use loss_type='kto', or LLM_DPO rows."
            )

    @property
    def pair_loss(self) -> PairLoss | None:
        """None for KTO."""
        return PAIR_LOSSES.get(self.loss_type)

    @property
    def needs_reference(self) -> bool:
        return self.pair_loss is None or self.pair_loss.reference

    @property
    def per_token(self) -> bool:
        assert self.pair_loss
        chosen = self.length_normalized
        return self.pair_loss.per_token if chosen is None else chosen

    def pair_losses(self, scores: Tensor, chosen_means: Tensor) -> Tensor:
        """(B,) losses of the scores (B, 2), with the SFT term on `chosen_means` (B,)."""
        pair = self.pair_loss
        assert pair
        given: dict[str, Any] = {n: getattr(self, n) for n in pair.options}
        given = {name: value for name, value in given.items() if value is not None}
        losses = pair.function(scores[:, 0], scores[:, 1], self.beta, **given)
        weight = pair.sft_weight if self.sft_weight is None else self.sft_weight
        return losses + weight * sft(chosen_means) if weight else losses
