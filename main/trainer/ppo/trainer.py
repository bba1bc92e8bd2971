"""Proximal policy optimisation (PPO) of a LoRA adapter.

    loss = alpha * mean(-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A))
           + beta * mean(max((V - R)^2, (V_clipped - R)^2) / 2) - gamma * mean(entropy)

Schulman et al., arXiv 1707.06347, equations 7 and 9; A and R by GAE, arXiv 1506.02438. Means are
over the completion tokens of the optimizer step. Each draw of rows is made into `ppo_epochs`
optimizer steps. Deviations and choices:
1. Policy, reference and critic share one copy of the base weights (main/trainer/ppo/critic.py).
2. An offline batch takes a gold answer for the sample, its old log-probs from the policy. As in
   self-imitation learning, arXiv 1806.05635, equation 2, only max(A, 0) counts there: once the
   critic expects the gold answer's reward, A is noise, and half of it would lower that answer.
3. The reward's divergence from the starting policy is taken off token by token (`kl_coef`).
4. The score of a completion, cut or not, is its whole reward (`bootstrap_truncated` is off): with
   a critic's value after the end, a constant reward would grow by itself from draw to draw.
5. Scores are in units of their running spread, measured from their running mean
   (main/trainer/ppo/scores.py), before the divergence is taken off; a draw whose scores are all
   alike has advantages 0. An offline draw before the first online one keeps its scores as they are.
6. The value loss moves no parameter of the policy (critic='detached'); alpha and beta then are
   factors of the learning rates too, as Adam does not see the size of a loss.

    from main.trainer.ppo import Trainer

    trainer = Trainer(from_pretrained="models/SmolLM2-135M-Instruct", data_path="ticket_en_rlhf",
                      reward_from_pretrained="models/all-MiniLM-L6-v2", actor_resume_path=...)
    for result in trainer(num_epochs=1, lr=1e-4, ppo_epsilon=0.2):
        print(result)
"""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from main.errors import ConfigError
from main.models.encoder import SentenceEncoder
from main.models.training_record import model_digest
from main.system.processes import gather_shares
from main.trainer.base import BaseTrainer
from main.trainer.loop.records import mean_of
from main.trainer.loop.task import Batch, LossOutput, Metrics, MicroBatch, Update
from main.trainer.online.base import OnlineTask, counted, set_dropout
from main.trainer.online.batch import SampleBatch, collate
from main.trainer.online.kl import adapted_coefficient
from main.trainer.online.policy_loss import clipped_surrogate
from main.trainer.online.records import divergence, reward_spread, sampling_mismatch
from main.trainer.online.sample import Prompt, Sample, note_tokens
from main.trainer.online.statistics import moments
from main.trainer.policy.logprobs import scoring
from main.trainer.policy.reference import Reference
from main.trainer.ppo.critic import ActorCritic, is_of_critic
from main.trainer.ppo.experience import after_the_end, credit, gold_sample, token_rewards
from main.trainer.ppo.gae import explained_variance, value_losses, whiten
from main.trainer.ppo.options import PPO_LOOP_ALIASES, PPO_SETUP_ALIASES, PPOOptions, PPOSetup
from main.trainer.ppo.rewards import load_reward_source, make_rewards
from main.trainer.ppo.scores import RunningScores, has_spread
from main.types import EpochResult


class Trainer(BaseTrainer):
    """PPO with a similarity reward, a reward model or any reward function.

    The constructor takes the arguments of `main.trainer.ppo.options.PPOSetup`, the call those of
    `PPOOptions`; `help(Trainer.__init__)` and `help(Trainer.__call__)` list them.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
        RewardError: while training, when a reward function fails; it names the function and row.
    """

    setup_class, loop_class = PPOSetup, PPOOptions
    setup_aliases, loop_aliases = PPO_SETUP_ALIASES, PPO_LOOP_ALIASES
    loaders = ("LLM_RLHF", "LLM_DPO")
    sets_itself = ("lora_dropout",)
    setup: PPOSetup
    model: ActorCritic

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        policy, setup = self.policy, self.setup
        self.reference = Reference(policy, self.starts_fresh)
        self.model = ActorCritic(policy, setup.critic, bool(self.model.ragged))
        set_dropout(self.model, setup.lora_dropout)
        if setup.critic_resume_path is not None:
            self.model.load_critic(setup.critic_resume_path)
        self.reward_source = load_reward_source(setup.reward_from_pretrained, setup.device)

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, `reward/mean`, `kl` and more."""
        return self._run(arguments)

    def configured(self, options: PPOOptions) -> "PPOTask":
        return PPOTask(self, options)

    def without_effect(self, options: PPOOptions) -> dict[str, str]:
        found = super().without_effect(options)
        if not isinstance(self.reward_source, SentenceEncoder):
            found["weight_for_cos_and_jaccard"] = "a reward that is no similarity"
        return found

    @property
    def row_format(self) -> str:
        """Both loaders name the same rows; PPO keeps the answers of a row together."""
        return "LLM_RLHF" if self.setup.loader_name == "LLM_DPO" else super().row_format


class PPOTask(OnlineTask):
    """Completions, their rewards, and `ppo_epochs` updates of policy and critic on them."""

    setup: PPOSetup
    options: PPOOptions

    def __init__(self, trainer: Trainer, options: PPOOptions):
        super().__init__(trainer, options)
        self.reference, self.actor_critic = trainer.reference, trainer.model
        self.updates_per_draw, self.samples_per_row = options.ppo_epochs, options.num_generations
        self.kl_coef, self.scores = options.kl_coef, RunningScores()
        self.rewards = make_rewards(trainer.reward_source, options, self.progress)
        self.companions = {"Critic": self.actor_critic.save_critic}
        self.check_groups("batch_size")
        self.check_context()
        if options.critic_warmup_steps and self.setup.critic == "head":
            raise ConfigError(
                f"critic_warmup_steps={options.critic_warmup_steps} does not go with "
                "critic='head', whose value loss moves the policy: use 'detached' or 'adapter'."
            )

    def rate(self, name: str) -> float:
        """alpha for the policy's weights and beta for the critic's, where they share none."""
        if self.setup.critic == "head":
            return 1.0
        return self.options.beta if is_of_critic(name) else self.options.alpha

    # -- a draw of rows becomes experience, and the experience `ppo_epochs` updates

    def updates(self, drawn: list[MicroBatch], step: int) -> Iterable[Update]:
        online = self._is_online(step)
        micro_batches = self._samples(drawn, step, online)
        metrics = self.reward(counted(micro_batches))
        self.agreed(lambda: [self._estimate(micro.items) for micro in micro_batches])
        metrics |= self._credit(micro_batches, online) | {"online": (float(online), 1)}
        for inner in range(self.options.ppo_epochs):
            yield Update(micro_batches, metrics if inner == 0 else None)

    def _is_online(self, step: int) -> bool:
        """The same on all processes and in a resumed run."""
        return random.Random(f"{self.setup.seed}-{step}").random() < self.setup.ratio_for_rlhf

    def _samples(self, drawn: list[MicroBatch], step: int, online: bool) -> list[MicroBatch]:
        """A sample for each prompt; a filler is not worth generating."""
        asked = counted(drawn) if online else []
        samples = iter(self.draw(asked, self.seeds(asked, step)))
        return [
            MicroBatch([next(samples) for _ in micro.items], True)
            if online and micro.counted
            else MicroBatch(self._gold(micro.items, step), micro.counted)
            for micro in drawn
        ]

    def _gold(self, prompts: list[Prompt], step: int) -> list[Sample]:
        seeds = self.seeds(prompts, step)
        return [gold_sample(p, s, self.stop_ids) for p, s in zip(prompts, seeds, strict=True)]

    @property
    def held_against(self) -> Reference | None:
        return self.reference

    def _estimate(self, samples: Sequence[Sample]) -> None:
        """Old log-probs and values by the policy as it is, and the reference's log-probs."""
        for _ in self.room.over(samples, self._estimate_at_once):
            pass

    def _estimate_at_once(self, samples: Sequence[Sample]) -> None:
        model, temperature = self.actor_critic, self.options.temperature
        inputs = collate(samples, self.pad_id, share_prompts=False).to(self.policy.device).inputs()
        with scoring(model):
            now = model(**inputs, temperature=temperature, entropy=True)
        with self.reference.active():
            before = model(**inputs, temperature=temperature, critic=False)
        note_tokens(samples, old_logprobs=now.logprobs, entropy=now.entropy, old_values=now.values)
        note_tokens(samples, ref_logprobs=before.logprobs)

    def _credit(self, micro_batches: list[MicroBatch], online: bool) -> Metrics:
        """Set advantages and returns; what the records say about the draw."""
        o, samples = self.options, counted(micro_batches)
        scores = torch.tensor([self._score(sample) for sample in samples], dtype=torch.float64)
        of_scores = moments([scores])
        if online:
            self.scores.add(of_scores)
        for micro in micro_batches:
            normalised = [self.scores.normalised(self._score(sample)) for sample in micro.items]
            rewards, mask = token_rewards(
                micro.items,
                torch.tensor(normalised),
                o.reward_placement,
                self.kl_coef,
                o.kl_estimator,
                self._steps(micro.items),
            )
            last_values = self._last_values(micro.items)
            credit(micro.items, rewards, mask, last_values, o.discount, o.gae_lambda)
        over = moments([sample.advantages[sample.drawn] for sample in samples])
        learnable = not online or has_spread(of_scores)
        for sample in (s for micro in micro_batches for s in micro.items):
            if o.whiten_advantages:
                sample.advantages = whiten(sample.advantages, over, shift_mean=online)
            if not online:
                sample.advantages = sample.advantages.clamp(min=0)
            if not learnable:
                sample.advantages = torch.zeros_like(sample.advantages)
            sample.advantages = sample.advantages.masked_fill(~sample.drawn, 0.0)
        return self._describe_draw(samples, online)

    def _score(self, sample: Sample) -> float:
        return sample.reward - self.options.missing_eos_penalty * (not sample.ended)

    def _steps(self, samples: Sequence[Sample]) -> list[Tensor] | None:
        """The rewards of an environment's steps in units of the scores; None without one."""
        if self.options.environment_factory is None:
            return None
        return [self.scores.scaled(sample.step_rewards) for sample in samples]

    def _last_values(self, samples: Sequence[Sample]) -> Tensor:
        """(B,), the critic's value after a cut completion that is to go on beyond its end."""
        if not self.options.bootstrap_truncated:
            return torch.zeros(len(samples))
        ended = torch.tensor([sample.ended for sample in samples])
        values = torch.cat(list(self.room.over(samples, self._values_after)))
        return values.masked_fill(ended, 0.0)

    def _values_after(self, samples: Sequence[Sample]) -> Tensor:
        inputs, device = after_the_end(samples, self.pad_id), self.policy.device
        with scoring(self.actor_critic):
            values = self.actor_critic(**{name: t.to(device) for name, t in inputs.items()}).values
        return values.cpu()

    def _describe_draw(self, samples: list[Sample], online: bool) -> Metrics:
        metrics = self.described(samples)
        metrics |= divergence(samples, self.options.kl_estimator)
        metrics["reward/std"] = (reward_spread(samples), 1)
        if online:
            self.show(samples)
        if self.setup.ratio_for_rlhf > 0:
            metrics |= sampling_mismatch(samples)
        values = [sample.old_values[sample.drawn] for sample in samples]
        foreseen = explained_variance(values, [sample.returns[sample.drawn] for sample in samples])
        metrics["explained_variance"] = (foreseen, 1)
        if self.options.kl_target is not None:
            metrics["kl_coef"] = (self.kl_coef, 1)
            if online:
                self._follow_target(metrics, self.options.kl_target)
        return metrics

    def _follow_target(self, metrics: Metrics, target: float) -> None:
        name = "kl/completion"
        found = mean_of(gather_shares({name: metrics[name]}))[name]
        self.kl_coef = adapted_coefficient(self.kl_coef, found, target)

    # -- one update

    def collate(self, examples: list[Sample]) -> Batch:
        batch = collate(examples, self.pad_id, share_prompts=False)
        tokens = sum(sample.length for sample in examples)
        return Batch(batch, {"tokens": int(batch.mask.sum())}, tokens)

    def loss(self, tensors: SampleBatch, totals: Mapping[str, float]) -> LossOutput:
        o, batch, mask = self.options, tensors, tensors.mask
        out = self.model(**batch.inputs(), temperature=o.temperature, entropy=o.gamma > 0)
        assert batch.old_logprobs is not None and batch.advantages is not None
        kept, old = mask[batch.present], batch.old_logprobs[mask]  # (N,)
        ratio = (out.logprobs[kept] - old).exp()
        policy = clipped_surrogate(ratio, batch.advantages[mask], o.ppo_epsilon)
        policy_losses = policy.losses
        correction = o.correction(batch.old_logprobs, batch.sampling_logprobs, mask)
        if correction is not None:
            policy_losses = policy_losses * correction.expand(mask.shape)[mask]
        value = self._value_loss(out.values[kept], batch)
        actor = o.alpha * policy_losses.sum()
        if o.gamma > 0:
            actor = actor - o.gamma * out.entropy[kept].sum()
        # Times 0, not left out: DDP waits for the gradient of every weight.
        total = actor * float(self.run.step >= o.critic_warmup_steps) + o.beta * value
        sums: dict[str, Tensor] = {
            "loss": total,
            "loss/policy": policy_losses.sum(),
            "loss/value": value,
            "clip_fraction": policy.clipped.float().sum(),
            "ratio": ratio.sum(),
        }
        return LossOutput(
            total / totals["tokens"], {name: (s.detach(), len(old)) for name, s in sums.items()}
        )

    def _value_loss(self, values: Tensor, batch: SampleBatch) -> Tensor:
        assert batch.old_values is not None and batch.returns is not None
        old, returns = batch.old_values[batch.mask], batch.returns[batch.mask]
        return value_losses(values, old, returns, self.options.value_clip).sum()

    # -- evaluation, records, checkpoints

    def evaluated_names(self) -> list[str]:
        return [*super().evaluated_names(), *divergence([], "k3")]

    def describe_evaluated(self, samples: list[Sample]) -> Metrics:
        """How far the policy has gone, by k3: greedy tokens are no sample of it."""
        self._estimate(samples)
        if self.setup.ratio_for_rlhf <= 0:
            self.show(samples)
        return divergence(samples, "k3")

    def identity(self) -> dict[str, Any]:
        source = self.trainer.reward_source
        digest = model_digest(source.model)[:16] if source is not None else None
        return super().identity() | {"reward_from_pretrained": digest}

    def state(self) -> dict[str, Any]:
        return super().state() | {"kl_coef": self.kl_coef, "scores": self.scores.state()}

    def tensors(self) -> dict[str, Tensor]:
        return self.reference.tensors

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().load_state(state, tensors)
        self.kl_coef, self.scores = state["kl_coef"], RunningScores(**state["scores"])
        self.reference = Reference.restored(self.policy, tensors)
