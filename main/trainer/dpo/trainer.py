"""Direct preference optimisation (DPO) and its relatives, on pairs or on unpaired answers (KTO).

    loss = -(1 / N) sum over the N pairs of the optimizer step of log sigma(beta (r_w - r_l)),
    r = log pi(y|x) - log pi_ref(y|x), summed over the answer           arXiv 2305.18290, eq. 7

Other losses: main/trainer/dpo/losses.py. Deviations from the usual DPO loop:
1. The reference is the policy as it starts (adapter off, or a frozen copy of the resumed adapter);
   its log-probabilities are computed once and kept.
2. Chosen and rejected answers share one computation of their prompt.
3. N counts the pairs of the whole step, over micro-batches and processes. The SFT term is the mean
   over a pair's chosen tokens, then over pairs.
4. KTO's reference point is one number for the whole optimizer step, see `Unpaired`.
Dropout of the adapter acts on the policy only.

    from main.trainer.dpo import Trainer

    trainer = Trainer(from_pretrained="models/SmolLM2-135M-Instruct", data_path="ticket_en_dpo")
    for result in trainer(num_epochs=3, lr=5e-5, beta=0.1):
        print(result)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from main.loaders.order import shard
from main.system.processes import gather_shares, this_copy
from main.trainer.base import BaseTask, BaseTrainer
from main.trainer.dpo.losses import kto
from main.trainer.dpo.options import PreferenceOptions, PreferenceSetup
from main.trainer.dpo.preferences import Pairs, Referenced, Unpaired
from main.trainer.dpo.scores import PairSums, answer_tokens, on_policy_weights, sums_of
from main.trainer.loop.launch import placement_name
from main.trainer.loop.task import (
    Batch,
    LossOutput,
    Metrics,
    MicroBatch,
    Row,
    Run,
    Update,
    to_device,
)
from main.trainer.policy.branches import lay_out, takes_branches
from main.trainer.policy.logprobs import TokenLogprobs, scoring
from main.trainer.policy.reference import Reference
from main.trainer.policy.reference_cache import reference_logprobs
from main.types import EpochResult


class Trainer(BaseTrainer):
    """DPO of a LoRA adapter; `resume_path` starts from, and refers to, an SFT adapter.

    The constructor takes the arguments of `PreferenceSetup`, the call those of
    `PreferenceOptions`; `help(Trainer.__init__)` and `help(Trainer.__call__)` list them.

    Raises:
        ConfigError, DataError, ModelError, MissingFileError: in the constructor and at the call,
            before anything is trained.
    """

    setup_class = PreferenceSetup
    loop_class = PreferenceOptions
    loaders = ("LLM_DPO", "LLM_RLHF", "LLM_KTO")

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.reference = Reference(self.policy, self.starts_fresh)

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch.

        Its metrics are means over pairs: `loss`, `rewards/chosen`, `rewards/rejected` (beta times
        the scores that the loss compares), `rewards/margin`, `accuracy` (share of margins > 0),
        `logps/chosen`, `logps/rejected` (sums over tokens). KTO's margin is a reward's distance
        from the reference point on the right side; `kl` is that point.
        """
        return self._run(arguments)

    def configured(self, options: PreferenceOptions) -> "PreferenceTask":
        return PreferenceTask(self, options)


class PreferenceTask(BaseTask):
    """Pairs, or single answers, against a reference."""

    setup: PreferenceSetup
    options: PreferenceOptions

    def __init__(self, trainer: Trainer, options: PreferenceOptions):
        super().__init__(trainer, options)
        options.check_loader(self.setup.loader_name)
        self.reference = trainer.reference
        self.unpaired = not options.pair_losses
        self.share_prompt = options.share_prompt and takes_branches(self.causal_lm)
        encoded = trainer.train_data, trainer.eval_data
        self.train_data, self.eval_data = (self._arranged(rows) for rows in encoded)

    def _arranged(self, rows: Any) -> Any:
        if rows is None:
            return None
        return Unpaired(rows, self.setup.max_length) if self.unpaired else Pairs(rows)

    # -- the reference, once

    @property
    def held_against(self) -> Reference | None:
        return self.reference if self.options.needs_reference else None

    def open(self, run: Run) -> None:
        super().open(run)
        self.eval_kl: float | None = None  # of the evaluation under way
        if self.options.needs_reference:
            self.train_data = self._referenced(self.train_data)
            self.eval_data = self.eval_data and self._referenced(self.eval_data)

    def _referenced(self, rows: Any) -> Referenced:
        size = self.batch_size_eval
        exact = next(self.policy.parameters()).dtype == torch.float32
        tolerance = 1e-3 if exact and self.run.precision == "no" else 3e-2
        with self.reference.active():
            found = reference_logprobs(rows, self._key(rows), self._both, size, tolerance)
        return Referenced(rows, found)

    def _key(self, rows: Any) -> str:
        precision = "full" if self.run.precision == "no" else self.run.precision
        tail = "" if self.options.ld_alpha is None else f"_{self.options.ld_alpha}"
        # Of the same placement and in the same batches: a policy that is its reference has margins
        # of 0, not of rounding.
        batches = f"{this_copy().size}x{self.batch_size_eval}"
        how = f"{precision}_{placement_name()}_{batches}{tail}"
        return f"{rows.digest[:24]}_{self.reference.fingerprint[:24]}_{how}"

    def _both(self, rows: Any) -> Tensor:
        return self._score(rows, slice(None))

    def _score(self, rows: Sequence[Row], which: slice) -> Tensor:
        """(B, A) log-probabilities of the selected answers, by the model as it is switched."""
        return torch.cat(list(self.room.over(rows, lambda piece: self._sums(piece, which))))

    def _sums(self, rows: Sequence[Row], which: slice) -> Tensor:
        tensors = to_device(self._lay_out(rows, which), self.run.device)
        logprobs = answer_tokens(self.trained, **tensors).logprobs
        return sums_of(logprobs, tensors["lengths"], self.options.ld_alpha).view(len(rows), -1)

    def _lay_out(self, rows: Sequence[Row], which: slice) -> dict[str, Any]:
        prompts = [row["prompt_ids"] for row in rows]
        answers = [row["answers"][which] for row in rows]
        return lay_out(prompts, answers, self.pad_id, self.share_prompt and len(answers[0]) > 1)

    # -- a micro-batch

    def collate(self, rows: list[Row]) -> Batch:
        tensors = self._lay_out(rows, slice(1) if self.unpaired else slice(2))
        tokens = sum(map(len, (row["prompt_ids"] for row in rows))) + sum(tensors["lengths"])
        if self.options.needs_reference:
            tensors["reference"] = torch.tensor([row["reference"] for row in rows])
        if self.unpaired:
            tensors["desirable"] = torch.tensor([row["label"] for row in rows])
            tensors["kl"] = torch.tensor([row["kl"] for row in rows])
        return Batch(tensors, {"pairs": len(rows)}, tokens)

    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        inputs = {name: tensors[name] for name in _LAYOUT if name in tensors}
        weighted = self.options.use_weighting
        tokens = answer_tokens(self.model, **inputs, concentration=weighted)
        losses, metrics = (self._unpaired if self.unpaired else self._paired)(tokens, tensors)
        metrics["loss"] = (losses.sum(), len(losses))
        return LossOutput(losses.sum() / totals["pairs"], metrics)

    def _paired(self, tokens: TokenLogprobs, tensors: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """Losses (B,) of pairs from the tokens of their answers."""
        lengths = torch.tensor(tensors["lengths"], device=tokens.logprobs.device).view(-1, 2)
        whole = sums_of(tokens.logprobs, tensors["lengths"]).view(-1, 2)
        tail, sums = self.options.ld_alpha, whole
        if tail is not None:
            sums = sums_of(tokens.logprobs, tensors["lengths"], tail).view(-1, 2)
        weights = None
        if tokens.concentration is not None:
            weights = on_policy_weights(tokens.logprobs, tokens.concentration, tensors["lengths"])
        reference = tensors.get("reference", 0.0)
        pairs = PairSums(sums, reference, whole / lengths, lengths, weights)
        rewards = (
            self.options.beta * self.options.scores(self.options.pair_losses[0], pairs).detach()
        )
        return self.options.losses(pairs), _metrics(
            rewards, rewards[:, 0] - rewards[:, 1], sums.detach()
        )

    def _unpaired(self, tokens: TokenLogprobs, tensors: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """Losses (B,) of single answers from their tokens."""
        options, good = self.options, tensors["desirable"]
        sums = sums_of(tokens.logprobs, tensors["lengths"])
        ratio, kl = sums - tensors["reference"][:, 0], tensors["kl"]
        weights = options.desirable_weight, options.undesirable_weight
        losses = kto(ratio, good, kl, options.beta, *weights)
        ratio, sums = ratio.detach(), sums.detach()
        margin = options.beta * torch.where(good, ratio - kl, kl - ratio)
        columns = torch.stack([good, ~good], dim=1)  # (B, 2): a label counts in its own column
        return losses, _metrics(options.beta * ratio[:, None], margin, sums[:, None], columns)

    # -- KTO's reference point

    def updates(self, drawn: list[MicroBatch], step: int) -> Iterable[Update]:
        if not self.unpaired:
            yield Update(drawn)
            return
        self.eval_kl = None
        kl = self._kl(drawn)
        yield Update([MicroBatch(_with_kl(m.items, kl), m.counted) for m in drawn], {"kl": (kl, 1)})

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        if not self.unpaired:
            return super().evaluate(rows, device)
        if self.eval_kl is None:  # the first rows of an evaluation, on every process alike
            self.eval_kl = self._kl(self._all_evaluated())
        metrics = super().evaluate(_with_kl(rows, self.eval_kl), device)
        return metrics | {"kl": (self.eval_kl, 1)}

    def _all_evaluated(self) -> Iterable[MicroBatch]:
        data: Any = self.eval_data
        pieces = shard(range(len(data)), data.lengths, self.batch_size_eval, *this_copy())
        return (MicroBatch([data[i] for i in piece.rows], piece.counted) for piece in pieces)

    def _kl(self, pieces: Iterable[MicroBatch]) -> float:
        """Mean log-ratio of mismatched answers over all processes; not negative."""
        parts = gather_shares(self.agreed(lambda: self._log_ratios(pieces)))
        return max(0.0, sum(part[0] for part in parts) / sum(part[1] for part in parts))

    def _log_ratios(self, pieces: Iterable[MicroBatch]) -> tuple[float, int]:
        """Their sum over the mismatched answers of this process, and how many these are."""
        total, count = 0.0, 0
        with scoring(self.policy):
            for rows, counted, _ in pieces:
                reference = torch.tensor([row["reference"][1] for row in rows])
                ratios = self._score(rows, slice(1, 2))[:, 0].cpu() - reference
                if counted:
                    total, count = total + float(ratios.double().sum()), count + len(rows)
        return total, count

    def evaluated_names(self) -> list[str]:
        none = torch.zeros(0)
        names = _metrics(torch.zeros(0, 2), none, torch.zeros(0, 2))
        return ["loss", *names, *(["kl"] if self.unpaired else [])]

    # -- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        return self.reference.tensors if self.options.needs_reference else {}

    def load_state(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        super().load_state(state, tensors)
        if self.options.needs_reference:
            self.reference = Reference.restored(self.policy, tensors)


_LAYOUT = ("input_ids", "branch", "lengths", "position_ids", "rows")


def _with_kl(rows: list[Row], kl: float) -> list[Row]:
    return [{**row, "kl": kl} for row in rows]


def _metrics(
    rewards: Tensor, margins: Tensor, sums: Tensor, columns: Tensor | None = None
) -> Metrics:
    """Sums and counts; rewards and sums are (B, 2) chosen, rejected, or (B, 1) with `columns`."""
    columns = torch.ones(len(margins), 2, device=sums.device) if columns is None else columns
    found: Metrics = {}
    for name, values in (("rewards", rewards), ("logps", sums)):
        for column, kind in enumerate(("chosen", "rejected")):
            mine = columns[:, column]
            found[f"{name}/{kind}"] = ((values * columns)[:, column].sum(), float(mine.sum()))
    found["rewards/margin"] = (margins.sum(), len(margins))
    found["accuracy"] = ((margins > 0).sum(), len(margins))
    return found
