"""Proximal policy optimisation (PPO) of a LoRA adapter.

    loss = alpha * mean(-min(ratio * A, clip(ratio, 1 - epsilon, 1 + epsilon) * A))
           + beta * mean(max((V - R)^2, (V_clipped - R)^2) / 2) - gamma * mean(entropy)

Schulman et al., arXiv 1707.06347, equations 7 and 9; A and R by GAE, arXiv 1506.02438. Means are
over the completion tokens of the optimizer step. Each draw of rows is made into `ppo_epochs`
optimizer steps. Deviations and choices:
1. Policy, reference and critic share one copy of the base weights (main/trainer/critic.py).
2. An offline batch takes a gold answer for the sample, its old log-probs from the policy. As in
   self-imitation learning, arXiv 1806.05635, equation 2, only max(A, 0) counts there: once the
   critic expects the gold answer's reward, A is noise, and half of it would lower that answer.
3. The reward's divergence from the starting policy is taken off token by token (`kl_coef`).
4. Rows whose completion the length limit cut are bootstrapped with the critic's value.

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

from main.adapters import starts_as_base
from main.errors import ConfigError
from main.models import context_length
from main.trainer.critic import ActorCritic
from main.trainer.experience import (
    Sample,
    credit,
    describe,
    draw_seed,
    drawn_sample,
    gold_sample,
    mismatch,
    model_inputs,
    scoreable,
    split,
    table,
    token_rewards,
)
from main.trainer.gae import explained_variance, moments, value_losses, whiten
from main.trainer.generating import GeneratingTrainer, set_dropout
from main.trainer.kl import adapted_coefficient
from main.trainer.logprobs import scoring
from main.trainer.policy_loss import clipped_surrogate, sampling_correction
from main.trainer.ppo_options import PPO_LOOP_ALIASES, PPO_SETUP_ALIASES, PPOOptions, PPOSetup
from main.trainer.ppo_rewards import load_reward_source, make_rewards
from main.trainer.records import mean_of
from main.trainer.reference import Reference
from main.trainer.task import Batch, LossOutput, Metrics, MicroRows, Row, Update, to_device
from main.types import EpochResult
from main.utils.processes import gather_shares, once_a_share

SHOWN = 8  # completions in an epoch's table


class Trainer(GeneratingTrainer):
    """PPO with a similarity reward, a reward model or any reward function.

    The constructor takes the arguments of `main.trainer.ppo_options.PPOSetup`, the call those of
    `PPOOptions`; `help(Trainer.__init__)` and `help(Trainer.__call__)` list them.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
        RewardError: while training, when a reward function fails; it names the function and row.
    """

    setup_class, loop_class = PPOSetup, PPOOptions
    setup_aliases, loop_aliases = PPO_SETUP_ALIASES, PPO_LOOP_ALIASES
    loaders = ("LLM_RLHF", "LLM_DPO")
    setup: PPOSetup
    options: PPOOptions

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        policy, setup = self.policy, self.setup
        fresh = setup.resume_path is None and starts_as_base(setup)
        self.reference = Reference(policy, fresh)
        self.model = ActorCritic(policy, setup.critic)
        set_dropout(self.model, setup.lora_dropout)
        if setup.critic_resume_path is not None:
            self.model.load_critic(setup.critic_resume_path)
        self.reward_source = load_reward_source(setup.reward_from_pretrained, setup.device)
        self.companions = {"Critic": lambda folder: self.actor_critic.save_critic(folder)}
        self.kl_coef = 0.0
        self._shown: dict[str, list[Sample]] = {"eval": [], "train": []}

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, `reward/mean`, `kl` and more."""
        run = self._run(arguments)
        self.updates_per_step = self.options.ppo_epochs
        self.kl_coef = self.options.kl_coef
        self.rewards = make_rewards(self.reward_source, self.options, self.progress)
        self._check_lengths()
        return run

    # -- a draw of rows becomes experience, and the experience `ppo_epochs` updates

    def updates(self, drawn: list[MicroRows], step: int) -> Iterable[Update]:
        online = self._is_online(step)
        pieces = self._draw_samples(drawn, step, online)
        metrics = self._score([s for piece in pieces for s in piece if s.counted])
        for piece in pieces:
            self._estimate(piece)
        metrics |= self._credit(pieces, online) | {"online": (float(online), 1)}
        micro_batches = [
            MicroRows([{**sample.row, "of": sample} for sample in piece], micro.counted)
            for piece, micro in zip(pieces, drawn, strict=True)
        ]
        for inner in range(self.options.ppo_epochs):
            yield Update(micro_batches, metrics if inner == 0 else None)

    def _is_online(self, step: int) -> bool:
        """The same on all processes and in a resumed run."""
        return random.Random(f"{self.setup.seed}-{step}").random() < self.setup.ratio_for_rlhf

    def _draw_samples(self, drawn: list[MicroRows], step: int, online: bool) -> list[list[Sample]]:
        """A sample for each row; a filler is not worth generating."""
        seed, stops = self.setup.seed, self.stop_ids
        asked = [row for micro in drawn for row in micro.rows if online and micro.counted]
        completions = iter(self.draw(asked, [draw_seed(seed, step, r["row"]) for r in asked]))
        pieces = []
        for micro in drawn:
            if online and micro.counted:
                pieces.append([drawn_sample(row, next(completions)) for row in micro.rows])
            else:
                seeds = [draw_seed(seed, step, row["row"]) for row in micro.rows]
                pairs = zip(micro.rows, seeds, strict=True)
                pieces.append([gold_sample(r, s, stops, micro.counted) for r, s in pairs])
        return pieces

    def _score(self, samples: list[Sample]) -> Metrics:
        """Set the samples' rewards; an error of a reward function ends all processes."""
        scores = once_a_share(lambda: self.rewards.score(scoreable(samples, self.tokenizer)))
        for i, (sample, reward) in enumerate(zip(samples, scores.rewards.tolist(), strict=True)):
            sample.score, sample.notes = reward, scores.notes.of(i)
        return scores.metrics()

    def _estimate(self, samples: Sequence[Sample]) -> None:
        """Old log-probs and values by the policy as it is, and the reference's log-probs."""
        model, temperature = self.actor_critic, self.options.temperature
        inputs = to_device(model_inputs(samples, self.pad_id), self.policy.device)
        kept = inputs.pop("kept")
        with scoring(model):
            now = model(**inputs, temperature=temperature, entropy=True)
        with self.reference.active():
            before = model(**inputs, temperature=temperature, critic=False)
        cut = iter(now.values[~kept].tolist())
        for sample, logprobs, ref_logprobs, entropy, values in zip(
            samples,
            split(now.logprobs[kept], samples),
            split(before.logprobs[kept], samples),
            split(now.entropy[kept], samples),
            split(now.values[kept], samples),
            strict=True,
        ):
            sample.old_logprobs, sample.ref_logprobs = logprobs, ref_logprobs
            sample.entropy, sample.old_values = entropy, values
            sample.last_value = 0.0 if sample.ended else next(cut)

    def _credit(self, pieces: list[list[Sample]], online: bool) -> Metrics:
        """Set advantages and returns; what the records say about the draw."""
        o = self.options
        for piece in pieces:
            rewards, mask = token_rewards(
                piece, o.reward_placement, o.missing_eos_penalty, self.kl_coef, o.kl_estimator
            )
            credit(piece, rewards, mask, o.discount, o.gae_lambda, o.bootstrap_truncated)
        samples = [s for piece in pieces for s in piece if s.counted]
        over = moments([sample.advantages for sample in samples])
        for sample in (s for piece in pieces for s in piece):
            if o.whiten_advantages:
                sample.advantages = whiten(sample.advantages, over, shift_mean=online)
            if not online:
                sample.advantages = sample.advantages.clamp(min=0)
        self._shown["train"] = samples[:SHOWN]
        return self._describe_draw(samples, online)

    def _describe_draw(self, samples: list[Sample], online: bool) -> Metrics:
        metrics = describe(samples, self.options.kl_estimator) | mismatch(samples)
        spread = moments([torch.tensor([sample.score for sample in samples])]).variance
        metrics["reward/std"] = (spread**0.5, 1)
        foreseen = explained_variance([s.old_values for s in samples], [s.returns for s in samples])
        if foreseen is not None:
            metrics["explained_variance"] = (foreseen, 1)
        target = self.options.kl_target
        if target is not None:
            metrics["kl_coef"] = (self.kl_coef, 1)
            if online:
                found = mean_of(gather_shares({"kl": metrics["kl"]}))["kl"]
                self.kl_coef = adapted_coefficient(self.kl_coef, found, target)
        return metrics

    # -- one update

    def collate(self, rows: list[Row]) -> Batch:
        samples = [row["of"] for row in rows]
        tensors = model_inputs(samples, self.pad_id)
        for name in ("old_logprobs", "drawn_logprobs", "old_values", "advantages", "returns"):
            tensors[name] = torch.cat([getattr(sample, name) for sample in samples])
        return Batch(
            tensors=tensors,
            counts={"tokens": int(tensors["kept"].sum())},
            tokens=sum(len(sample.prompt_ids) + len(sample.ids) for sample in samples),
        )

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        o, kept, old = self.options, tensors["kept"], tensors["old_logprobs"]
        out = self.model(
            tensors["input_ids"],
            tensors["loss_mask"],
            temperature=o.temperature,
            entropy=o.gamma > 0,
        )
        ratio = (out.logprobs[kept] - old).exp()
        policy = clipped_surrogate(ratio, tensors["advantages"], o.ppo_epsilon)
        policy_losses = policy.losses
        if o.importance_sampling_cap is not None:
            everything = torch.ones_like(old, dtype=torch.bool)
            policy_losses = policy_losses * sampling_correction(
                old, tensors["drawn_logprobs"], everything, o.importance_sampling_cap
            )
        values = out.values[kept]
        value = value_losses(values, tensors["old_values"], tensors["returns"], o.value_clip).sum()
        total = o.alpha * policy_losses.sum() + o.beta * value
        if o.gamma > 0:
            total = total - o.gamma * out.entropy[kept].sum()
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

    # -- evaluation, records, checkpoints

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        """Greedy completions of the rows, scored; `kl` by k3 on them."""
        completions = self.draw(rows, [0] * len(rows), greedy=True)
        samples = [Sample(r, c.ids, c.ended) for r, c in zip(rows, completions, strict=True)]
        metrics = self._score(samples)
        self._estimate(samples)
        self._shown["eval"] = (self._shown["eval"] + samples)[:SHOWN]
        return metrics | describe(samples, "k3")

    def sample_text(self) -> str:
        """Greedy answers to evaluation rows, or the last draw where nothing is evaluated."""
        shown = self._shown["eval"] or self._shown["train"]
        self._shown = {"eval": [], "train": []}
        return table(shown, self.tokenizer)

    def state(self) -> dict[str, Any]:
        return {"kl_coef": self.kl_coef}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl_coef = state["kl_coef"]

    @property
    def actor_critic(self) -> ActorCritic:
        return self.unwrapped

    # -- what the constructor and the call check

    @property
    def row_format(self) -> str:
        """Both loaders name the same rows; PPO keeps the answers of a row together."""
        return "LLM_RLHF"

    def _check_lengths(self) -> None:
        """A prompt and its completion must fit into the model's context."""
        context, wanted = context_length(self.causal_lm.config), self.options.max_completion_length
        if context is None or self.setup.max_length + wanted <= context:
            return
        rows: Any
        for rows in (self.train_data, self.eval_data or []):
            for row in (rows[i] for i in range(len(rows))):
                if len(row["prompt_ids"]) + wanted > context:
                    raise ConfigError(
                        f"row {row['row']} has a prompt of {len(row['prompt_ids'])} tokens; with "
                        f"max_completion_length={wanted} it exceeds the model's context of "
                        f"{context}. Lower max_completion_length or max_length."
                    )
