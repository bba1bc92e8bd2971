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

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from main.adapters import starts_as_base
from main.errors import ConfigError
from main.models import context_length
from main.trainer import policy_loss
from main.trainer.advantages import advantages, zero_spread
from main.trainer.branches import takes_branches
from main.trainer.generating import GeneratingTrainer, set_dropout
from main.trainer.grpo_options import (
    GRPO_LOOP_ALIASES,
    GRPO_SETUP_ALIASES,
    GRPOOptions,
    GRPOSetup,
)
from main.trainer.kl import kl_estimate
from main.trainer.records import Means
from main.trainer.reference import Reference
from main.trainer.rewards import Rewards
from main.trainer.samples import SAMPLE, by_completion, collate, inputs, keep, key, seed_of
from main.trainer.scoring import complete, sample_metrics, samples_table
from main.trainer.task import Batch, LossOutput, Metrics, MicroRows, Row, Update, to_device
from main.types import EpochResult
from main.utils.processes import gather_shares, share

CISPO_WEIGHT = 5.0  # default of epsilon_high for 'cispo', as ScaleRL recommends (2510.13786)
TABLE_ROWS = 8  # samples shown an epoch


class Trainer(GeneratingTrainer):
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
    options: GRPOOptions
    setup: GRPOSetup

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        set_dropout(self.model)
        self.reference: Reference | None = None
        self.share = self.setup.share_prompts and takes_branches(self.causal_lm)
        self.shown = ""  # a table of the latest draw

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch with `loss`, `reward/mean` and the others."""
        run = self._run(arguments)
        options = self.options
        self.rewards = Rewards(options.reward_func, options.reward_weights, self.progress)
        options.reward_func = self.rewards.names  # what trackers write down
        self.samples_per_row = options.num_generations
        self.updates_per_step = options.num_iterations
        self.batch_size = options.per_device_train_batch_size or self.setup.batch_size
        self.batch_size_eval = options.per_device_eval_batch_size or (
            self.setup.batch_size_eval or self.batch_size
        )
        self._check_sizes()
        if options.beta and self.reference is None:
            fresh = self.setup.resume_path is None and starts_as_base(self.setup)
            self.reference = Reference(self.policy, fresh)
        return run

    # -- one draw of prompts: completions, rewards, advantages, then the updates

    def updates(self, drawn: list[MicroRows], step: int) -> Iterable[Update]:
        metrics = self._roll_out(drawn, step)
        if self.options.beta:
            self._score_by_reference(drawn)
        for iteration in range(self.options.num_iterations):
            yield Update(drawn, None if iteration else metrics)

    def _complete(self, rows: list[Row], seeds: list[int], greedy: bool = False) -> Metrics:
        completions = self.draw(rows, seeds, greedy)
        return complete(rows, completions, self.tokenizer, self.rewards, self.options)

    def _roll_out(self, drawn: list[MicroRows], step: int) -> Metrics:
        """Fill every row of `drawn` with its sample; returns what to record."""
        options = self.options
        todo = [row for micro in drawn for row in micro.rows]
        redrawn: set[int] = set()
        logged = Means()
        for attempt in range(options.dynamic_sampling + 1):
            seeds = [seed_of(self.setup.seed, step, row, attempt) for row in todo]
            logged.add(self._complete(todo, seeds))
            rewards = self._all_rewards(drawn)
            flat = zero_spread(_grouped(rewards, options.num_generations))
            rows = sorted({row for row, _ in rewards})
            dull = {row for row, is_flat in zip(rows, flat.tolist(), strict=True) if is_flat}
            if not dull or attempt == options.dynamic_sampling:
                break
            redrawn |= dull
            todo = [row for micro in drawn for row in micro.rows if row["row"] in dull]
        self._give_credit(drawn, rewards)
        self._remember(drawn)
        metrics = sample_metrics(
            [row[SAMPLE] for micro in drawn if micro.counted for row in micro.rows],
            self.rewards,
            options,
        )
        metrics["reward/std"] = (float(torch.tensor(list(rewards.values())).std()), 1)
        metrics["frac_reward_zero_std"] = (len(dull), len(rows))
        if options.dynamic_sampling:
            metrics["frac_redrawn"] = (len(redrawn), len(rows))
        return metrics | logged.state()

    def _all_rewards(self, drawn: list[MicroRows]) -> dict[tuple[int, int], float]:
        """Rewards of the whole step over all processes, by source row and sample, in order."""
        mine = [
            (key(row), row[SAMPLE].reward + row[SAMPLE].overlong)
            for micro in drawn
            if micro.counted
            for row in micro.rows
        ]
        return dict(sorted(entry for part in gather_shares(mine) for entry in part))

    def _give_credit(self, drawn: list[MicroRows], rewards: dict[tuple[int, int], float]) -> None:
        options = self.options
        grouped = _grouped(rewards, options.num_generations)
        credit = advantages(grouped, options.advantage, options.scale).flatten().tolist()
        by_key = dict(zip(rewards, credit, strict=True))
        for micro in drawn:
            for row in micro.rows:
                row[SAMPLE].advantage = by_key[key(row)]

    @torch.no_grad()
    def _score_by_reference(self, drawn: list[MicroRows]) -> None:
        assert self.reference is not None
        device = next(self.model.parameters()).device
        with self.reference.active():
            for micro in drawn:
                tensors = to_device(self.collate(micro.rows).tensors, device)
                output = self.model(**inputs(tensors), temperature=self.options.temperature)
                keep(output, tensors["present"], tensors["samples"], "ref_logprobs")

    # -- the loss

    def collate(self, rows: list[Row]) -> Batch:
        cut = self.options.mask_truncated_completions
        masked = [cut and not row[SAMPLE].completion.ended for row in rows]
        tensors = collate(rows, self.pad_id, self.share, masked)
        counts = {"tokens": int(tensors["mask"].sum()), "sequences": len(rows), "micro_batches": 1}
        tokens = sum(len(row["prompt_ids"]) + len(row[SAMPLE].completion.ids) for row in rows)
        return Batch(tensors, cast(dict[str, float], counts), tokens)

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        options, present, mask = self.options, tensors["present"], tensors["mask"]
        output = self.model(
            **inputs(tensors),
            temperature=options.temperature,
            entropy=True,
            entropy_gradient=False,
        )
        logprobs = by_completion(output.logprobs, present)
        if "old_logprobs" not in tensors and options.num_iterations > 1:
            keep(output, present, tensors["samples"], "old_logprobs")
        old = tensors.get("old_logprobs", logprobs.detach())  # the first update's ratio is 1
        losses, metrics = self._token_losses(logprobs, old, tensors)
        added = policy_loss.add_up(losses, mask, options.loss_type, options.max_completion_length)
        metrics["loss"] = (added.total.detach(), added.number)
        metrics["entropy"] = _over(mask, by_completion(output.entropy, present))
        return LossOutput(added.total / totals[added.unit], metrics)

    def _token_losses(
        self, logprobs: Tensor, old: Tensor, tensors: dict[str, Any]
    ) -> tuple[Tensor, Metrics]:
        options, mask = self.options, tensors["mask"]
        sampling = tensors["sampling_logprobs"]
        metrics: Metrics = {"sampling_mismatch": _over(mask, (sampling - old).abs())}
        correction = None
        if options.importance_sampling_cap is not None:
            cap = options.importance_sampling_cap
            correction = policy_loss.sampling_correction(old, sampling, mask, cap)
        ratio = policy_loss.importance_ratio(logprobs, old, mask, options.level)
        advantages = tensors["advantages"]
        losses, clipped = surrogate(options, logprobs, old, ratio, advantages, mask, correction)
        metrics["clip_fraction"] = _over(mask, clipped.float().expand(mask.shape))
        if options.beta:
            kl = kl_estimate(logprobs, tensors["ref_logprobs"], options.kl_estimator)
            losses = losses + options.beta * (kl * ratio if options.unbiased_kl else kl)
            metrics["kl"] = _over(mask, kl)
        return losses, metrics

    # -- evaluation and records

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        """Rewards of the likeliest completion of each prompt."""
        logged = self._complete(rows, [0] * len(rows), greedy=True)
        return logged | sample_metrics([row[SAMPLE] for row in rows], self.rewards, self.options)

    def _remember(self, drawn: list[MicroRows]) -> None:
        rows = [row for micro in drawn if micro.counted for row in micro.rows][:TABLE_ROWS]
        if rows:
            self.shown = samples_table(rows, self.rewards.names)

    def sample_text(self) -> str:
        return self.shown

    def state(self) -> dict[str, Any]:
        return {"shown": self.shown}

    def load_state(self, state: dict[str, Any]) -> None:
        self.shown = state["shown"]

    # -- checks

    def _check_sizes(self) -> None:
        options, ranks = self.options, share().size
        step = self.batch_size * ranks * options.gradient_accumulation_steps
        if step % options.num_generations:
            raise ConfigError(
                f"num_generations={options.num_generations} does not divide the {step} completions "
                f"of an optimizer step (per_device_train_batch_size={self.batch_size} x "
                f"{ranks} processes x gradient_accumulation_steps="
                f"{options.gradient_accumulation_steps}). Change one of them."
            )
        context = context_length(self.causal_lm.config)
        longest = max(
            [*self.train_data.lengths, *(self.eval_data.lengths if self.eval_data else [])]
        )
        if context and longest + options.max_completion_length > context:
            raise ConfigError(
                f"the longest prompt has {longest} tokens; with max_completion_length="
                f"{options.max_completion_length} it exceeds the model's context of {context}. "
                "Lower max_completion_length, or max_length to shorten or skip long prompts."
            )


def surrogate(
    options: GRPOOptions,
    logprobs: Tensor,
    old_logprobs: Tensor,
    ratio: Tensor,
    advantages: Tensor,
    mask: Tensor,
    correction: Tensor | None,
) -> policy_loss.Surrogate:
    """The surrogate of `loss_type`, corrected for the sampler."""
    if options.loss_type == "vespo":
        return policy_loss.vespo_surrogate(logprobs, old_logprobs, advantages, mask, correction)
    if options.loss_type == "cispo":
        limit = options.epsilon_high or CISPO_WEIGHT
        losses, clipped = policy_loss.cispo_surrogate(logprobs, ratio, advantages, limit)
    elif options.loss_type == "sapo":
        temperatures = options.sapo_temperature_pos, options.sapo_temperature_neg
        losses, clipped = policy_loss.sapo_surrogate(ratio, advantages, *temperatures)
    else:
        losses, clipped = policy_loss.clipped_surrogate(
            ratio, advantages, options.epsilon, options.epsilon_high
        )
    return policy_loss.Surrogate(losses if correction is None else losses * correction, clipped)


def _grouped(rewards: dict[tuple[int, int], float], samples: int) -> Tensor:
    """(N, G), a row a prompt; `rewards` are in order."""
    return torch.tensor(list(rewards.values()), dtype=torch.float64).view(-1, samples)


def _over(mask: Tensor, values: Tensor) -> tuple[Tensor, float]:
    """Sum and count over the tokens that count."""
    return values.detach().masked_fill(~mask, 0.0).sum(), float(mask.sum())
