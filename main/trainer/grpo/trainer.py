"""GRPO with LoRA: a policy learns from the rewards of its own completions.

    J = E[ sum_t min(ratio_t A, clip(ratio_t, 1 - epsilon, 1 + epsilon_high) A) - beta KL_t ],
    A_i = (r_i - mean(r_1..G)) / std(r_1..G)

Shao et al. 2024, arXiv 2402.03300, equation 3; its variants as arguments: Dr. GRPO, DAPO, GSPO,
CISPO, SAPO, LUSPO, VESPO, and the advantages of RLOO and REINFORCE++.

Deviations from the papers:
1. The default is TRL's: tokens are averaged over the whole step (DAPO's loss), and beta is 0.
2. DAPO's dynamic sampling draws a group with equal rewards again, at most `dynamic_sampling` times,
   instead of taking other prompts until the batch is full.
3. Dropout is off throughout, so that the first update's ratio is exactly 1.
4. A prompt is computed once for all its completions, in sampling and in the update.

Run:  accelerate launch examples/grpo.py
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from main.errors import ConfigError
from main.system.processes import gather_shares, this_process
from main.trainer.base import BaseTrainer
from main.trainer.grpo.advantages import overlong_penalty
from main.trainer.grpo.credit import Judged, credit_of, gather, without_spread
from main.trainer.grpo.entropy import note_forks
from main.trainer.grpo.options import (
    GRPO_LOOP_ALIASES,
    GRPO_SETUP_ALIASES,
    GRPOOptions,
    GRPOSetup,
)
from main.trainer.grpo.teacher import make_teacher
from main.trainer.loop.records import Means
from main.trainer.loop.task import Batch, LossOutput, Metrics, MicroBatch, Row, Run, Update
from main.trainer.online.base import OnlineTask, counted, regrouped, set_dropout
from main.trainer.online.batch import SampleBatch, collate
from main.trainer.online.kl import kl_estimate
from main.trainer.online.off_policy import near_policy
from main.trainer.online.policy_loss import Tokens, importance_ratio, micro_batch_mean
from main.trainer.online.records import reward_spread
from main.trainer.online.sample import Prompt, Sample, note_tokens
from main.trainer.placement.base import is_shared_out
from main.trainer.policy.branches import takes_branches
from main.trainer.policy.logprobs import scoring
from main.trainer.policy.reference import MovingReference, Reference
from main.trainer.rewards.functions import Rewards
from main.types import EpochResult

log = logging.getLogger(__name__)

_EVALUATION = -1  # in the place of a step, for seeds


class Trainer(BaseTrainer):
    """Trains an adapter on rows {"prompt": ..., "answer": ...} with reward functions.

    Args:
        arguments: fields of `GRPOSetup`; `help(Trainer.__init__)` and `help(Trainer.__call__)`
            list them all.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
    """

    setup_class = GRPOSetup
    loop_class = GRPOOptions
    setup_aliases = GRPO_SETUP_ALIASES
    loop_aliases = GRPO_LOOP_ALIASES
    loaders = ("LLM_GRPO",)
    sets_itself = ("lora_dropout",)
    setup: GRPOSetup

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        set_dropout(self.model)
        self._reference: Reference | None = None
        self.shares_prompts = self.setup.share_prompts and takes_branches(self.causal_lm)
        self.teacher = make_teacher(self, self.tokenizer.pad_token_id or 0)

    @property
    def reference(self) -> Reference:
        """The policy as it is when it is first asked for."""
        if self._reference is None:
            self._reference = Reference(self.policy, self.starts_fresh)
        return self._reference

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, `reward/mean` and the others."""
        return self._run(arguments)

    def without_effect(self, options: GRPOOptions) -> dict[str, str]:
        found = super().without_effect(options)
        if self.teacher is None:
            found["teacher_weight"] = "a trainer without a teacher"
        return found

    def configured(self, options: GRPOOptions) -> "GRPOTask":
        return GRPOTask(self, options)


class GRPOTask(OnlineTask):
    """Groups of completions of one prompt, compared with each other."""

    setup: GRPOSetup
    options: GRPOOptions

    def __init__(self, trainer: Trainer, options: GRPOOptions):
        super().__init__(trainer, options)
        self.shares_prompts = trainer.shares_prompts
        self.teacher = trainer.teacher
        self.rewards = self._judges()
        self.samples_per_row = options.num_generations
        self.steps_per_draw = options.steps_per_draw
        self.updates_per_draw = options.num_iterations * self.steps_per_draw
        self.batch_size = options.per_device_train_batch_size or self.setup.batch_size
        self.batch_size_eval = options.per_device_eval_batch_size or (
            self.setup.batch_size_eval or self.batch_size
        )
        self.check_groups("per_device_train_batch_size")
        self.check_context()
        self.reference = self._starting_reference(trainer)
        self.synced = 0  # times that the reference could have followed

    def _judges(self) -> Rewards:
        options = self.options
        others = self.teacher, options.environment_factory
        if options.reward_func is None and others == (None, None):
            raise ConfigError(
                "GRPO needs 'reward_func', or a teacher: teacher_peft_path or "
                "teacher_from_pretrained of the constructor; or an environment_factory."
            )
        functions = [] if options.reward_func is None else options.reward_func
        return Rewards(functions, options.reward_weights, self.progress, options.patience)

    @property
    def held_against(self) -> Reference | None:
        return self.reference

    def _starting_reference(self, trainer: Trainer) -> Reference | None:
        if not self.options.beta:
            return None
        return MovingReference(trainer.policy) if self.options.sync_ref_model else trainer.reference

    def open(self, run: Run) -> None:
        super().open(run)
        if self.teacher is not None:
            self.teacher.to(run.device)
        if self.options.sync_ref_model and is_shared_out(self.model):
            raise ConfigError(
                "sync_ref_model=True needs the whole adapter in each process, and the launcher "
                "shares it out (ZeRO stage 3, FSDP or tensor parallelism): launch with a whole "
                "copy each, or leave it out."
            )

    # -- one draw of prompts: completions, rewards, advantages, then the updates

    def updates(self, drawn: list[MicroBatch], step: int) -> Iterable[Update]:
        self._follow(step)
        micro_batches, metrics = self._roll_out(drawn, step)
        self.agreed(lambda: [self._score(micro.items) for micro in micro_batches])
        if self.options.top_entropy_quantile < 1:
            everything = [sample for micro in micro_batches for sample in micro.items]
            note_forks(everything, counted(micro_batches), self.options.top_entropy_quantile)
        for number in range(self.updates_per_draw):
            part = number % self.steps_per_draw
            mine = [micro for micro in micro_batches if micro.part == part]
            yield Update(mine, None if number else metrics)

    def _follow(self, step: int) -> None:
        due = step // self.options.ref_model_sync_steps
        if isinstance(self.reference, MovingReference) and due > self.synced:
            self.reference.follow(self.options.ref_model_mixup_alpha)
            self.synced = due

    def _roll_out(self, drawn: list[MicroBatch], step: int) -> tuple[list[MicroBatch], Metrics]:
        """A sample with a reward and its credit for every prompt, and what to record."""
        options = self.options
        prompts: list[Prompt] = [prompt for micro in drawn for prompt in micro.items]
        found: dict[int, Sample] = {}
        todo = list(range(len(prompts)))
        redrawn: set[int] = set()
        logged = Means()
        for attempt in range(options.dynamic_sampling + 1):
            asked = [prompts[i] for i in todo]
            samples = self.draw(asked, self.seeds(asked, step, attempt))
            logged.add(self.reward(samples))
            found |= zip(todo, samples, strict=True)
            micro_batches = regrouped([found[i] for i in range(len(prompts))], drawn)
            judged = gather(counted(micro_batches), self.part_names, options.num_generations)
            dull = without_spread(judged, options)
            if not dull or attempt == options.dynamic_sampling:
                break
            redrawn |= dull
            todo = [i for i, prompt in enumerate(prompts) if prompt.row["row"] in dull]
        self._give_credit(list(found.values()), judged)
        self._warn_if_all_are_cut(counted(micro_batches), step)
        rows = len(judged.rewards)
        metrics = self._describe_draw(counted(micro_batches))
        metrics["frac_reward_zero_std"] = (len(dull), rows)
        if options.dynamic_sampling:
            metrics["frac_redrawn"] = (len(redrawn), rows)
        return micro_batches, metrics | logged.state()

    def reward(self, samples: Sequence[Sample]) -> Metrics:
        """That of the functions, less the penalty of overlong completions."""
        logged = super().reward(samples)
        limit, cache = self.options.max_completion_length, self.options.overlong_cache
        for sample in samples if cache else ():
            penalty = float(overlong_penalty(torch.tensor(len(sample.ids)), limit, cache))
            sample.parts["overlong"] = penalty
            sample.reward += penalty
        return logged

    @property
    def part_names(self) -> list[str]:
        return [*super().part_names, *(["overlong"] if self.options.overlong_cache else [])]

    @property
    def part_weights(self) -> list[float]:
        functions = self.rewards.weights
        return [*functions, *[1.0] * (len(self.part_names) - len(functions))]

    def _give_credit(self, samples: list[Sample], judged: Judged) -> None:
        options = self.options
        credit = credit_of(judged, self.part_weights, options)
        for sample in samples:
            sample.advantages = sample.drawn * credit[sample.key]
            if options.mask_truncated_completions and not sample.ended:
                sample.mask = torch.zeros_like(sample.mask)

    def _warn_if_all_are_cut(self, samples: list[Sample], step: int) -> None:
        trained = any(gather_shares(any(bool(sample.mask.any()) for sample in samples)))
        if not trained and this_process().is_main:
            log.warning(
                "step %d: max_completion_length=%d cut every completion, and "
                "mask_truncated_completions=True leaves those out: nothing is learnt from this "
                "draw. Raise max_completion_length.",
                *(step + 1, self.options.max_completion_length),
            )

    def _describe_draw(self, samples: list[Sample]) -> Metrics:
        self.show(samples)
        return self.described(samples) | {"reward/std": (reward_spread(samples), 1)}

    def _score(self, samples: Sequence[Sample]) -> None:
        """Log-probs by the reference, and the policy's own where it will have moved."""
        selects, taught = self.options.top_entropy_quantile < 1, self.teacher is not None
        if self.options.beta or self.updates_per_draw > 1 or selects or taught:
            for _ in self.room.over(samples, self._score_at_once):
                pass

    def _score_at_once(self, samples: Sequence[Sample]) -> None:
        options, model = self.options, self.trained
        if self.teacher is not None:
            taught = self.teacher.logprobs(samples, options.temperature)
            note_tokens(samples, teacher_logprobs=taught)
        moves, selects = self.updates_per_draw > 1, options.top_entropy_quantile < 1
        batch = self._tensors(samples).to(self.policy.device)
        if moves or selects:
            with scoring(model):
                now = model(**batch.inputs(), temperature=options.temperature, entropy=selects)
            note_tokens(samples, **({"old_logprobs": now.logprobs} if moves else {}))
            note_tokens(samples, **({"entropy": now.entropy} if selects else {}))
        if options.beta:
            assert self.reference is not None
            with self.reference.active():
                before = model(**batch.inputs(), temperature=options.temperature)
            note_tokens(samples, ref_logprobs=before.logprobs)

    # -- the loss

    def _tensors(self, samples: Sequence[Sample]) -> SampleBatch:
        return collate(samples, self.pad_id, self.shares_prompts)

    def collate(self, examples: list[Sample]) -> Batch:
        batch = self._tensors(examples)
        counts = {
            "tokens": int(batch.mask.sum()),
            "sequences": len(examples),
            "micro_batches": 1,
            "learnt_from": int(batch.learnt_from.sum()),
        }
        tokens = sum(sample.length for sample in examples)
        return Batch(batch, cast(dict[str, float], counts), tokens)

    def loss(self, tensors: SampleBatch, totals: Mapping[str, float]) -> LossOutput:
        options, batch = self.options, tensors
        output = self.model(
            **batch.inputs(),
            temperature=options.temperature,
            entropy=True,
            entropy_gradient=options.entropy_coef > 0,
        )
        losses, metrics = self._token_losses(batch.by_completion(output.logprobs), batch)
        add_up = options.policy_loss.add_up
        added = add_up(losses, batch.mask, options.max_completion_length)
        metrics["loss"] = (added.total.detach(), added.number)
        entropy = batch.by_completion(output.entropy)
        metrics["entropy"] = batch.over(entropy)
        loss = added.total / totals[added.unit]
        if options.entropy_coef:
            chosen = entropy.masked_fill(~batch.learnt_from, 0.0)
            loss = loss - options.entropy_coef * chosen.sum() / totals["learnt_from"]
        return LossOutput(loss, metrics)

    def _token_losses(self, logprobs: Tensor, batch: SampleBatch) -> tuple[Tensor, Metrics]:
        """(B, T) losses with the divergence's; the first update's ratio is 1."""
        options, mask = self.options, batch.mask
        old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
        sampling, advantages = batch.sampling_logprobs, batch.advantages
        correction = options.correction(old, sampling, mask)
        taught = batch.teacher_logprobs
        if taught is not None:
            assert advantages is not None
            advantages = advantages + options.teacher_weight * (taught - old)
        ratio = importance_ratio(logprobs, old, mask, options.level)
        assert advantages is not None
        tokens = Tokens(logprobs, old, advantages, mask, ratio, correction)
        losses, clipped = options.policy_loss.of(tokens, vars(options))
        metrics: Metrics = {
            "sampling_mismatch": batch.over((sampling - old).abs()),
            "clip_fraction": batch.over(clipped.float().expand(mask.shape)),
        }
        if taught is not None:
            metrics["teacher/kl"] = batch.over(old - taught)
        if batch.forks is not None:
            losses = losses * batch.forks
        if (threshold := options.off_policy_mask_threshold) is not None:
            drew = torch.where(sampling.isnan(), old, sampling)
            losses = losses * near_policy(logprobs, drew, advantages, mask, threshold)
        if options.beta:
            assert batch.ref_logprobs is not None
            kl = kl_estimate(logprobs, batch.ref_logprobs, options.kl_estimator)
            losses = losses + options.beta * (kl * ratio if options.unbiased_kl else kl)
            metrics["kl"] = batch.over(kl)
            metrics["kl/completion"] = (metrics["kl"][0], len(mask))
        return losses, metrics

    # -- checkpoints

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.teacher is not None:
            found["teacher"] = self.teacher.fingerprint[:16]
        if self.options.policy_loss.add_up is micro_batch_mean:
            found["per_device_train_batch_size"] = self.batch_size  # its loss depends on the cut
        return found

    def tensors(self) -> dict[str, Tensor]:
        return self.reference.tensors if self.reference else {}

    def state(self) -> dict[str, Any]:
        return super().state() | {"synced": self.synced}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().load_state(state, tensors)
        self.synced = state["synced"]
        if isinstance(self.reference, MovingReference):
            self.reference = MovingReference(self.policy, tensors)
        elif self.reference:
            self.reference = Reference.restored(self.policy, tensors)

    # -- evaluation

    def evaluated_names(self) -> list[str]:
        return super().evaluated_names() + ([] if self.teacher is None else ["teacher/kl"])

    def describe_evaluated(self, samples: list[Sample]) -> Metrics:
        """How far the policy's answers are from the teacher's, nats a token."""
        if self.teacher is None:
            return {}
        with scoring(self.model):
            batch = self._tensors(samples).to(self.policy.device)
            own = self.model(**batch.inputs(), temperature=self.options.temperature).logprobs
        taught = self.teacher.logprobs(samples, self.options.temperature)
        return {"teacher/kl": (float((own - taught).sum()), len(own))}

    def answers(self, rows: list[Row]) -> list[Sample]:
        """The likeliest of each prompt, or as many drawn ones as asked for: with the same seeds in
        every evaluation, so that two of them differ by the policy alone."""
        count = self.options.num_generations_eval
        if count is None:
            return super().answers(rows)
        prompts = [Prompt(row, number) for row in rows for number in range(count)]
        return self.draw(prompts, self.seeds(prompts, _EVALUATION))
