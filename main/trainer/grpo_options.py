"""What the GRPO trainer accepts beside what every trainer does."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from main.options import below, not_positive
from main.trainer.advantages import Advantage, Scale
from main.trainer.arguments import LOOP_ALIASES, SETUP_ALIASES, LoopOptions, SetupOptions
from main.trainer.policy_loss import SEQUENCE_LEVEL, Level, LossType
from main.trainer.samplers import SamplerOptions

GRPO_SETUP_ALIASES = {**SETUP_ALIASES, "max_prompt_length": "max_length"}
GRPO_LOOP_ALIASES = {
    **LOOP_ALIASES,
    "reward_funcs": "reward_func",
    "use_bias_correction_kl": "unbiased_kl",
    "vllm_importance_sampling_cap": "importance_sampling_cap",
}


@dataclass(kw_only=True)
class GRPOSetup(SetupOptions):
    """As `SetupOptions`; `max_length` is the limit of the prompt alone.

    share_prompts: compute a prompt once for all its completions (where the model allows it).
    """

    loader_name: str = "LLM_GRPO"
    share_prompts: bool = True

    def problems(self) -> list[str]:
        found = super().problems()
        if self.lora_dropout:
            found.append(
                f"lora_dropout={self.lora_dropout} must be 0: completions are scored by the policy "
                "that drew them, and with dropout it would be another one at every step."
            )
        return found


@dataclass(kw_only=True)
class GRPOOptions(SamplerOptions, LoopOptions):
    """Arguments of the call, beside `LoopOptions` and `SamplerOptions`.

    reward_func: a function, or a list of them, see main.trainer.rewards.
    reward_weights: a factor for each function.
    num_generations: completions of a prompt, G.
    per_device_train_batch_size: completions a process computes at once; by default the
        constructor's batch_size. per_device_eval_batch_size likewise, of evaluation.
    num_iterations: optimizer steps made of one draw of completions.
    loss_type: 'dapo' (the default, mean over tokens), 'grpo', 'dr_grpo', 'bnpo', 'gspo', 'cispo',
        'sapo', 'luspo' or 'vespo', see main.trainer.policy_loss.
    epsilon, epsilon_high: the clip's distance below and above 1; epsilon_high is epsilon by
        default. For 'cispo' epsilon_high is the largest weight, 5 by default.
    advantage, scale_rewards: see main.trainer.advantages; scale_rewards is 'group' by default,
        'none' for 'dr_grpo' and 'rloo', 'batch' for 'reinforce++'. True and False are 'group' and
        'none'.
    beta, kl_estimator: weight of the divergence from the starting policy; 0 does not compute it.
        k1 is missing: as a loss its gradient is zero on average.
    unbiased_kl: weigh the divergence of a token by its ratio, so that its gradient is that of the
        true one also where the ratio is 1 (DeepSeek-V3.2, arXiv 2512.02556).
    importance_sampling_cap: largest correction for a sampler whose probabilities differ from the
        trainer's; None does not correct.
    mask_truncated_completions: leave completions that the limit cut out of the loss.
    overlong_cache: the last tokens before the limit, over which a penalty grows to -1; 0 is none.
    dynamic_sampling: how often a group with equal rewards is drawn again; 0 is never.
    sapo_temperature_pos, sapo_temperature_neg: of the gate of 'sapo'.
    """

    reward_func: Any
    reward_weights: list | None = None
    num_generations: int = 8
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int | None = None
    num_iterations: int = 1
    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    advantage: Advantage = "group"
    scale_rewards: Scale | bool | None = None
    beta: float = 0.0
    kl_estimator: Literal["k2", "k3"] = "k3"
    unbiased_kl: bool = True
    importance_sampling_cap: float | None = 2.0
    mask_truncated_completions: bool = False
    overlong_cache: int = 0
    dynamic_sampling: int = 0
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    lr: float = 1e-5
    metric_for_best_model: str = "reward/mean"
    greater_is_better: bool = True

    @property
    def scale(self) -> Scale | None:
        """`scale_rewards` with the default of the loss; None is the advantage's own."""
        if isinstance(self.scale_rewards, bool):
            return "group" if self.scale_rewards else "none"
        if self.scale_rewards is None and self.loss_type == "dr_grpo":
            return "none"
        return self.scale_rewards

    @property
    def level(self) -> Level:
        """Whether the ratio is each token's or the sequence's."""
        return "sequence" if self.loss_type in SEQUENCE_LEVEL else "token"

    def problems(self) -> list[str]:
        found = SamplerOptions.problems(self) + LoopOptions.problems(self)
        if self.num_generations < 2:
            found.append(
                f"num_generations={self.num_generations} must be >= 2: a group of one has zero "
                "advantage. Use 2 or more, or main.trainer.ppo."
            )
        sizes = ("per_device_train_batch_size", "per_device_eval_batch_size", "num_iterations")
        found += below(self, dict.fromkeys(sizes, 1))
        found += below(self, {"beta": 0, "overlong_cache": 0, "dynamic_sampling": 0})
        found += not_positive(self, ("epsilon", "epsilon_high", "importance_sampling_cap"))
        found += not_positive(self, ("sapo_temperature_pos", "sapo_temperature_neg"))
        if self.overlong_cache >= self.max_completion_length:
            found.append(
                f"overlong_cache={self.overlong_cache} must be less than "
                f"max_completion_length={self.max_completion_length}."
            )
        found += self._without_effect()
        if self.advantage == "reinforce++" and self.scale == "group":
            found.append(
                "scale_rewards='group' does not go with advantage='reinforce++', which normalises "
                "over the batch: use 'batch' or 'none', or advantage='group'."
            )
        return found

    def _without_effect(self) -> list[str]:
        """Options that were changed and that the others leave without a use."""
        loss, no_clip = f"loss_type={self.loss_type!r}", ("sapo", "vespo")
        unused = {
            "epsilon": loss if self.loss_type in ("cispo", *no_clip) else "",
            "epsilon_high": loss if self.loss_type in no_clip else "",
            "sapo_temperature_pos": loss if self.loss_type != "sapo" else "",
            "sapo_temperature_neg": loss if self.loss_type != "sapo" else "",
            "kl_estimator": "beta=0" if not self.beta else "",
            "unbiased_kl": "beta=0" if not self.beta else "",
        }
        defaults = {field.name: field.default for field in fields(self)}
        return [
            f"{name}={getattr(self, name)!r} changes nothing with {cause}: leave it out."
            for name, cause in unused.items()
            if cause and getattr(self, name) != defaults[name]
        ]
