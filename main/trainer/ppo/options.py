"""What PPO accepts beside the arguments of every trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from main.options import below, not_positive
from main.trainer.arguments import LOOP_ALIASES, SETUP_ALIASES, LoopOptions, SetupOptions
from main.trainer.online.kl import KLEstimator
from main.trainer.online.off_policy import CorrectionOptions
from main.trainer.online.options import EpisodeOptions
from main.trainer.rewards.options import RewardOptions
from main.trainer.rewards.similarity import weight_problems
from main.trainer.rollout.options import SamplerOptions

CriticKind = Literal["head", "detached", "adapter"]
Placement = Literal["last", "every"]

PPO_SETUP_ALIASES: Mapping[str, str] = {**SETUP_ALIASES, "actor_resume_path": "resume_path"}
PPO_LOOP_ALIASES: Mapping[str, str] = {
    **LOOP_ALIASES,
    "ppo_epoch": "ppo_epochs",
    "max_new_tokens": "max_completion_length",
}


@dataclass(kw_only=True)
class PPOSetup(SetupOptions):
    """Arguments of PPO's constructor.

    reward_from_pretrained: a sentence encoder, for the reward by similarity to gold and bad answers
        (main/trainer/rewards/similarity.py); or a reward model, a `...ForSequenceClassification`
        checkpoint with one output.
    ratio_for_rlhf: probability that a batch is online (sampled from the policy); in an offline one
        a gold answer stands for the sample. <= 0: always offline, >= 1: always online.
    critic: 'head', 'detached' or 'adapter', see main/trainer/ppo/critic.py.
    resume_path (actor_resume_path): the adapter that policy and reference start from.
    critic_resume_path: a folder Critic_<step> that the critic starts from.
    lora_dropout: in the updates only; a resumed adapter's own is switched off as well.
    """

    loader_name: str = "LLM_RLHF"
    reward_from_pretrained: str | Path | None = None
    ratio_for_rlhf: float = 1.0
    critic: CriticKind = "detached"
    critic_resume_path: str | Path | None = None
    batch_size: int = 4

    def problems(self) -> list[str]:
        found = super().problems()
        if self.critic == "adapter" and self.gradient_checkpointing:
            found.append(
                "critic='adapter' excludes gradient_checkpointing, which would compute the critic's"
                " pass again with the policy's adapter: use critic='head' or a smaller batch_size."
            )
        return found


@dataclass(kw_only=True)
class PPOOptions(EpisodeOptions, CorrectionOptions, RewardOptions, SamplerOptions, LoopOptions):
    """Arguments of PPO's call, beside those of the classes that it is made of.

    reward_func: one function or a list, see main/trainer/rewards/functions.py; beside the reward of
        `reward_from_pretrained`, or instead of it.
    reward_weights: that of `reward_from_pretrained` first.
    weight_for_cos_and_jaccard: parts of cosine and jaccard in the similarity; they sum to 1.
    ppo_epsilon: the ratio is clipped to 1 - epsilon, 1 + epsilon.
    ppo_epochs: updates made of a batch before new samples and old log-probs are taken.
    alpha, beta, gamma: weights of policy loss, value loss and entropy bonus. Where policy and
        critic share no weights (critic='detached' or 'adapter'), alpha also multiplies the policy's
        and beta the critic's learning rate: Adam does not see the size of a loss.
    num_generations: completions of a prompt; batch_size counts completions.
    critic_warmup_steps: first optimizer steps, in which the critic alone learns.
    discount, gae_lambda: of main/trainer/ppo/gae.py (the guide's `gamma` is something else).
        Both 1: while the critic knows little, a lambda below 1 would make of one reward at the end
        a preference for late tokens (compare arXiv 2503.24290, which trains so).
    value_clip: how far a value may move from the old one; None = unbounded.
    whiten_advantages: to mean 0 and spread 1 over the tokens of the batch; an offline batch, which
        has no bad samples, is divided by the root mean square instead.
    reward_placement: the reward at the 'last' token, or spread over 'every' token.
    missing_eos_penalty: taken from the reward of a completion that the length limit cut.
    bootstrap_truncated: a cut completion goes on beyond its end, with the critic's value there.
        Right for rewards per step of an environment; a score given at the end is all of it, and
        where most completions are cut, every round would add it to that value once more.
    kl_coef: weight of the divergence from the starting policy, taken from each token's reward.
    kl_estimator: 'k1', 'k2' or 'k3', see main/trainer/online/kl.py.
    kl_target: nats a completion; kl_coef follows it after each online batch. None = fixed.
    """

    reward_func: Any = None
    weight_for_cos_and_jaccard: list | tuple = field(default_factory=lambda: [0.5, 0.5])
    ppo_epsilon: float = 0.2
    ppo_epochs: int = 3
    alpha: float = 0.5
    beta: float = 0.5
    gamma: float = 0.0
    num_generations: int = 1
    critic_warmup_steps: int = 0
    lr: float = 2e-4
    discount: float = 1.0
    gae_lambda: float = 1.0
    value_clip: float | None = 0.2
    whiten_advantages: bool = True
    reward_placement: Placement = "last"
    missing_eos_penalty: float = 0.0
    bootstrap_truncated: bool = False
    kl_coef: float = 0.05
    kl_estimator: KLEstimator = "k1"
    kl_target: float | None = None
    metric_for_best_model: str = "reward/mean"
    greater_is_better: bool = True

    def problems(self) -> list[str]:
        found = EpisodeOptions.problems(self) + CorrectionOptions.problems(self)
        found += RewardOptions.problems(self)
        found += SamplerOptions.problems(self) + LoopOptions.problems(self)
        found += weight_problems(self.weight_for_cos_and_jaccard)
        found += below(self, {"ppo_epochs": 1, "alpha": 0, "beta": 0, "gamma": 0})
        found += below(self, {"kl_coef": 0, "missing_eos_penalty": 0, "critic_warmup_steps": 0})
        found += below(self, {"num_generations": 1})
        found += [
            f"{name}={getattr(self, name)} must be from 0 to 1."
            for name in ("discount", "gae_lambda")
            if not 0 <= getattr(self, name) <= 1
        ]
        found += not_positive(self, ("ppo_epsilon", "value_clip", "kl_target"))
        if self.kl_target is not None and self.kl_coef == 0:
            found.append("kl_target needs a kl_coef above 0 to start from.")
        return found

    def harmless(self) -> frozenset[str]:
        return super().harmless() | {"weight_for_cos_and_jaccard"}
