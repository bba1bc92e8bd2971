"""What the GRPO trainer accepts beside what every trainer does."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from main.options import below, not_positive
from main.trainer.arguments import LOOP_ALIASES, SETUP_ALIASES, LoopOptions, SetupOptions
from main.trainer.grpo.advantages import Advantage, Aggregation, Scale
from main.trainer.online.off_policy import CorrectionOptions
from main.trainer.online.options import EpisodeOptions
from main.trainer.online.policy_loss import (
    LOSS_OPTIONS,
    POLICY_LOSSES,
    SAPO,
    VESPO,
    Level,
    LossType,
    PolicyLoss,
)
from main.trainer.rewards.options import RewardOptions
from main.trainer.rollout.options import SamplerOptions

OF_FUNCTIONS = ("reward_weights", "reward_timeout", "reward_retries")
OF_REWARDS = (
    *(*OF_FUNCTIONS, "advantage", "scale_rewards"),
    *("multi_objective_aggregation", "dynamic_sampling", "overlong_cache"),
)
GRPO_SETUP_ALIASES = {**SETUP_ALIASES, "max_prompt_length": "max_length"}
GRPO_LOOP_ALIASES = {
    **LOOP_ALIASES,
    "reward_funcs": "reward_func",
    "use_bias_correction_kl": "unbiased_kl",
    "vllm_importance_sampling_mode": "importance_sampling_mode",
    "vllm_importance_sampling_clip_max": "importance_sampling_cap",
    "vllm_importance_sampling_cap": "importance_sampling_cap",
    "vllm_importance_sampling_clip_min": "importance_sampling_floor",
}


@dataclass(kw_only=True)
class GRPOSetup(SetupOptions):
    """As `SetupOptions`; `max_length` is the limit of the prompt alone.

    share_prompts: compute a prompt once for all its completions (where the model allows it).
    teacher_peft_path: an adapter that judges what the policy draws (on-policy distillation, see
        main.trainer.grpo.teacher), on the policy's own base unless `teacher_from_pretrained` names
        another model; that one alone is a teacher without an adapter.
    """

    loader_name: str = "LLM_GRPO"
    share_prompts: bool = True
    teacher_from_pretrained: str | Path | None = None
    teacher_peft_path: str | Path | None = None

    def problems(self) -> list[str]:
        found = super().problems()
        if self.lora_dropout:
            found.append(
                f"lora_dropout={self.lora_dropout} must be 0: completions are scored by the policy "
                "that drew them, and with dropout it would be another one at every step."
            )
        return found


@dataclass(kw_only=True)
class GRPOOptions(EpisodeOptions, CorrectionOptions, RewardOptions, SamplerOptions, LoopOptions):
    """Arguments of the call, beside those of the classes that it is made of.

    reward_func: a function, or a list of them, see main.trainer.rewards.functions; None where a
        teacher or an environment judges.
    teacher_weight: of the teacher's part of the advantages.
    num_generations: completions of a prompt, G.
    num_generations_eval: completions drawn of a prompt in evaluation; by default one, the likeliest
        token always.
    per_device_train_batch_size: completions a process computes at once; by default the
        constructor's batch_size. per_device_eval_batch_size likewise, of evaluation.
    num_iterations: how often the completions of a draw are gone through.
    steps_per_generation: micro-batches that are drawn at once, a multiple of
        gradient_accumulation_steps, so that one draw is made into several optimizer steps; by
        default those of one step.
    loss_type: a key of `POLICY_LOSSES` in main.trainer.online.policy_loss; 'dapo', the default, is
        a mean over tokens.
    epsilon, epsilon_high: the clip's distance below and above 1; epsilon_high is epsilon by
        default. For 'cispo' epsilon_high is the largest weight, 5 by default.
    delta: the largest ratio of a completion that is to become less likely (two-sided clip), above
        1 + epsilon_high; None is no bound.
    importance_sampling_level: whether the ratio is that of each 'token' or of the 'sequence'; by
        default what the loss's paper says.
    off_policy_mask_threshold: leave out completions of negative advantage from which the policy is
        further away than this, nats a token (`near_policy` in main.trainer.online.off_policy).
    top_entropy_quantile: share of tokens, those with the most entropy, that the policy learns from.
    entropy_coef: weight of the mean entropy of these tokens, which is taken off the loss.
    advantage, scale_rewards: see main.trainer.grpo.advantages; scale_rewards is 'group' by default,
        'none' for 'dr_grpo' and 'rloo', 'batch' for 'reinforce++'. True and False are 'group' and
        'none'.
    multi_objective_aggregation: 'sum_then_normalize', or 'normalize_then_sum', which normalises
        each reward by itself (GDPO): see `decoupled_advantages` there. The penalty of
        `overlong_cache` counts as a reward.
    beta, kl_estimator: weight of the divergence from the starting policy; 0 does not compute it.
        k1 is missing: as a loss its gradient is zero on average.
    sync_ref_model: let the reference follow the policy, from what this is at the call: before the
        first draw after every ref_model_sync_steps optimizer steps each tensor of its adapter
        becomes ref_model_mixup_alpha parts of the policy's, the rest its own (TR-DPO).
    unbiased_kl: weigh the divergence of a token by its ratio, so that its gradient is that of the
        true one also where the ratio is 1 (DeepSeek-V3.2, arXiv 2512.02556).
    mask_truncated_completions: leave completions that the limit cut out of the loss.
    overlong_cache: the last tokens before the limit, over which a penalty grows to -1; 0 is none.
    dynamic_sampling: how often a group with equal rewards is drawn again; 0 is never.
    sapo_temperature_pos, sapo_temperature_neg: of the gate of 'sapo'.
    vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: of the weight of 'vespo'.
    """

    reward_func: Any = None
    teacher_weight: float = 1.0
    num_generations: int = 8
    num_generations_eval: int | None = None
    per_device_train_batch_size: int | None = None
    per_device_eval_batch_size: int | None = None
    num_iterations: int = 1
    steps_per_generation: int | None = None
    loss_type: LossType = "dapo"
    epsilon: float = 0.2
    epsilon_high: float | None = None
    delta: float | None = None
    importance_sampling_level: Level | None = None
    off_policy_mask_threshold: float | None = None
    top_entropy_quantile: float = 1.0
    entropy_coef: float = 0.0
    advantage: Advantage = "group"
    scale_rewards: Scale | bool | None = None
    multi_objective_aggregation: Aggregation = "sum_then_normalize"
    beta: float = 0.0
    kl_estimator: Literal["k2", "k3"] = "k3"
    sync_ref_model: bool = False
    ref_model_sync_steps: int = 512
    ref_model_mixup_alpha: float = 0.6
    unbiased_kl: bool = True
    mask_truncated_completions: bool = False
    overlong_cache: int = 0
    dynamic_sampling: int = 0
    sapo_temperature_pos: float = 1.0
    sapo_temperature_neg: float = 1.05
    vespo_k_pos: float = 2.0
    vespo_lambda_pos: float = 3.0
    vespo_k_neg: float = 3.0
    vespo_lambda_neg: float = 2.0
    lr: float = 1e-5
    metric_for_best_model: str = "reward/mean"
    greater_is_better: bool = True

    def __post_init__(self) -> None:
        if not self.has_rewards and self.metric_for_best_model == "reward/mean":
            self.metric_for_best_model, self.greater_is_better = "teacher/kl", False

    @property
    def has_rewards(self) -> bool:
        """Whether anything beside a teacher judges."""
        return self.reward_func is not None or self.environment_factory is not None

    @property
    def scale(self) -> Scale | None:
        """`scale_rewards` with the default of the loss; None is the advantage's own."""
        if isinstance(self.scale_rewards, bool):
            return "group" if self.scale_rewards else "none"
        if self.scale_rewards is None:
            return self.policy_loss.scale
        return self.scale_rewards

    @property
    def steps_per_draw(self) -> int:
        """Optimizer steps whose completions are drawn at once."""
        drawn = self.steps_per_generation or self.gradient_accumulation_steps
        return drawn // self.gradient_accumulation_steps

    @property
    def level(self) -> Level:
        return self.importance_sampling_level or self.policy_loss.level

    @property
    def policy_loss(self) -> PolicyLoss:
        return POLICY_LOSSES[self.loss_type]

    def problems(self) -> list[str]:
        found = EpisodeOptions.problems(self) + CorrectionOptions.problems(self)
        found += RewardOptions.problems(self)
        found += SamplerOptions.problems(self) + LoopOptions.problems(self)
        if self.num_generations < 2:
            found.append(
                f"num_generations={self.num_generations} must be >= 2: a group of one has zero "
                "advantage. Use 2 or more, or main.trainer.ppo."
            )
        sizes = ["per_device_train_batch_size", "per_device_eval_batch_size", "num_iterations"]
        found += below(self, dict.fromkeys([*sizes, "num_generations_eval"], 1))
        found += below(self, {"ref_model_sync_steps": 1, "steps_per_generation": 1})
        accumulated = self.gradient_accumulation_steps
        if self.steps_per_generation and self.steps_per_generation % accumulated:
            found.append(
                f"steps_per_generation={self.steps_per_generation} must be a multiple of "
                f"gradient_accumulation_steps={accumulated}: whole steps are drawn at once."
            )
        found += not_positive(self, ["teacher_weight"])
        if isinstance(self.reward_func, list | tuple) and not self.reward_func:
            found.append("reward_func is empty: give a function or a list of functions.")
        found += below(self, {"beta": 0, "overlong_cache": 0, "dynamic_sampling": 0})
        found += below(self, {"entropy_coef": 0, "off_policy_mask_threshold": 0})
        found += below(self, dict.fromkeys(VESPO, 0))
        found += not_positive(self, ("epsilon", "epsilon_high", *SAPO))
        found += [
            f"{name}={getattr(self, name)} must be in (0, 1]."
            for name in ("top_entropy_quantile", "ref_model_mixup_alpha")
            if not 0 < getattr(self, name) <= 1
        ]
        highest = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= highest:
            found.append(f"delta={self.delta} must be above 1 + epsilon_high = {highest:g}.")
        if self.overlong_cache >= self.max_completion_length:
            found.append(
                f"overlong_cache={self.overlong_cache} must be less than "
                f"max_completion_length={self.max_completion_length}."
            )
        if self.advantage == "reinforce++" and self.scale == "group":
            found.append(
                "scale_rewards='group' does not go with advantage='reinforce++', which normalises "
                "over the batch: use 'batch' or 'none', or advantage='group'."
            )
        return found

    def without_effect(self) -> dict[str, str]:
        loss = f"loss_type={self.loss_type!r}"
        found = {name: loss for name in LOSS_OPTIONS if name not in self.policy_loss.options}
        if self.loss_type in ("gspo", "vespo"):
            found["importance_sampling_level"] = loss
        if not self.sync_ref_model:
            of_sync = ("ref_model_sync_steps", "ref_model_mixup_alpha")
            found |= dict.fromkeys(of_sync, "sync_ref_model=False")
        if not self.has_rewards:
            found |= dict.fromkeys(OF_REWARDS, "reward_func=None")
        elif self.reward_func is None:
            found |= dict.fromkeys(OF_FUNCTIONS, "reward_func=None")
        if not self.beta:
            names = ("kl_estimator", "unbiased_kl", "sync_ref_model")
            found |= dict.fromkeys(names, "beta=0")
        if self.multi_objective_aggregation == "normalize_then_sum":
            cause = "multi_objective_aggregation='normalize_then_sum'"
            found |= dict.fromkeys(("advantage", "scale_rewards"), cause)
        return super().without_effect() | found
