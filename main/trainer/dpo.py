"""Direct preference optimisation (DPO) and its relatives, on pairs or on unpaired answers (KTO).

    loss = -(1 / N) sum over the N pairs of the optimizer step of log sigma(beta (r_w - r_l)),
    r = log pi(y|x) - log pi_ref(y|x), summed over the answer           arXiv 2305.18290, eq. 7

Other losses: main/trainer/losses.py. Deviations from the usual DPO loop:
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

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from main.adapters import starts_as_base
from main.errors import CheckpointError
from main.loaders.sampler import shard
from main.trainer.base import BaseTrainer
from main.trainer.branches import lay_out, sequence_logprobs, takes_branches
from main.trainer.dpo_options import PreferenceOptions, PreferenceSetup
from main.trainer.logprobs import scoring
from main.trainer.losses import kto
from main.trainer.preferences import Pairs, Referenced, Unpaired
from main.trainer.reference import Reference
from main.trainer.reference_cache import reference_logprobs
from main.trainer.task import Batch, LossOutput, Metrics, MicroRows, Row, Update, to_device
from main.types import EpochResult
from main.utils.processes import gather_shares, share


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
    setup: PreferenceSetup
    options: PreferenceOptions

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        fresh = self.setup.resume_path is None
        self.reference = Reference(self.policy, fresh and starts_as_base(self.setup))
        self.encoded = self.train_data, self.eval_data

    def __call__(self, **arguments: Any) -> Iterator[EpochResult]:
        """Train; yields an EpochResult per epoch.

        Its metrics are means over pairs: `loss`, `rewards/chosen`, `rewards/rejected` (beta times
        the scores that the loss compares), `rewards/margin`, `accuracy` (share of margins > 0),
        `logps/chosen`, `logps/rejected` (sums over tokens). KTO's margin is a reward's distance
        from the reference point on the right side; `kl` is that point.
        """
        results = self._run(arguments)
        self.unpaired = self.options.loss_type == "kto"
        self.options.check_loader(self.setup.loader_name)
        self.train_data, self.eval_data = (self._arranged(rows) for rows in self.encoded)
        self.share = self.options.share_prompt and takes_branches(self.causal_lm)
        return results

    def _arranged(self, rows: Any) -> Any:
        if rows is None:
            return None
        return Unpaired(rows, self.setup.max_length) if self.unpaired else Pairs(rows)

    # -- the reference, once

    def open(self, device: torch.device) -> None:
        self.device = device
        self.reference_key = ""
        self.eval_kl: float | None = None  # of the evaluation under way
        if self.options.needs_reference:
            self.reference_key = self._key(self.train_data)
            self.train_data = self._referenced(self.train_data)
            self.eval_data = self.eval_data and self._referenced(self.eval_data)

    def _referenced(self, rows: Any) -> Referenced:
        size = self.batch_size_eval
        exact = next(self.policy.parameters()).dtype == torch.float32
        tolerance = 1e-3 if exact and not (self.options.bf16 or self.options.fp16) else 3e-2
        with self.reference.active():
            found = reference_logprobs(rows, self._key(rows), self._both, size, tolerance)
        return Referenced(rows, found)

    def _key(self, rows: Any) -> str:
        precision = "bf16" if self.options.bf16 else "fp16" if self.options.fp16 else "full"
        return f"{rows.digest[:24]}_{self.reference.fingerprint[:24]}_{precision}"

    def _both(self, rows: Any) -> Tensor:
        return self._score(rows, slice(None))

    def _score(self, rows: list[Row], which: slice) -> Tensor:
        """(B, A) log-probabilities of the selected answers, by the model as it is switched."""
        tensors = to_device(self._lay_out(rows, which), self.device)
        return sequence_logprobs(self.unwrapped, **tensors).view(len(rows), -1)

    def _lay_out(self, rows: list[Row], which: slice) -> dict[str, Any]:
        prompts = [row["prompt_ids"] for row in rows]
        answers = [row["answers"][which] for row in rows]
        return lay_out(prompts, answers, self.pad_id, self.share and len(answers[0]) > 1)

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
        sums = sequence_logprobs(self.model, **inputs)
        losses, metrics = (self._unpaired if self.unpaired else self._paired)(sums, tensors)
        metrics["loss"] = (losses.sum(), len(losses))
        return LossOutput(losses.sum() / totals["pairs"], metrics)

    def _paired(self, sums: Tensor, tensors: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """Losses (B,) of pairs from the sums (2B,) of their answers."""
        sums = sums.view(-1, 2)
        lengths = torch.tensor(tensors["lengths"], device=sums.device).view(-1, 2)
        scores = sums - tensors.get("reference", 0.0)
        scores = scores / lengths if self.options.per_token else scores
        losses = self.options.pair_losses(scores, sums[:, 0] / lengths[:, 0])
        rewards = self.options.beta * scores.detach()
        return losses, _metrics(rewards, rewards[:, 0] - rewards[:, 1], sums.detach())

    def _unpaired(self, sums: Tensor, tensors: dict[str, Any]) -> tuple[Tensor, Metrics]:
        """Losses (B,) of single answers from their sums (B,)."""
        options, good = self.options, tensors["desirable"]
        ratio, kl = sums - tensors["reference"][:, 0], tensors["kl"]
        weights = options.desirable_weight, options.undesirable_weight
        losses = kto(ratio, good, kl, options.beta, *weights)
        ratio, sums = ratio.detach(), sums.detach()
        margin = options.beta * torch.where(good, ratio - kl, kl - ratio)
        columns = torch.stack([good, ~good], dim=1)  # (B, 2): a label counts in its own column
        return losses, _metrics(options.beta * ratio[:, None], margin, sums[:, None], columns)

    # -- KTO's reference point

    def updates(self, drawn: list[MicroRows], step: int) -> Iterable[Update]:
        if not self.unpaired:
            yield Update(drawn)
            return
        self.eval_kl = None
        kl = self._kl(drawn)
        yield Update([MicroRows(_with_kl(m.rows, kl), m.counted) for m in drawn], {"kl": (kl, 1)})

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        if not self.unpaired:
            return super().evaluate(rows, device)
        if self.eval_kl is None:  # the first rows of an evaluation, on every process alike
            self.eval_kl = self._kl(self._all_evaluated())
        metrics = super().evaluate(_with_kl(rows, self.eval_kl), device)
        return metrics | {"kl": (self.eval_kl, 1)}

    def _all_evaluated(self) -> Iterable[MicroRows]:
        data: Any = self.eval_data
        pieces = shard(range(len(data)), data.lengths, self.batch_size_eval, *share())
        return (MicroRows([data[i] for i in piece.rows], piece.counted) for piece in pieces)

    def _kl(self, pieces: Iterable[MicroRows]) -> float:
        """Mean log-ratio of mismatched answers over all processes; not negative."""
        total, count = 0.0, 0
        with scoring(self.policy):
            for rows, counted in pieces:
                reference = torch.tensor([row["reference"][1] for row in rows])
                ratios = self._score(rows, slice(1, 2))[:, 0].cpu() - reference
                if counted:
                    total, count = total + float(ratios.double().sum()), count + len(rows)
        parts = gather_shares((total, count))
        return max(0.0, sum(part[0] for part in parts) / sum(part[1] for part in parts))

    # -- resume

    def state(self) -> dict[str, Any]:
        return {"loss_type": self.options.loss_type, "reference": self.reference_key}

    def load_state(self, state: dict[str, Any]) -> None:
        for name, now in self.state().items():
            if state[name] != now:
                raise CheckpointError(
                    f"the checkpoint was trained with {name} {state[name]!r}, and this run has "
                    f"{now!r}. Give the model, resume_path, data and loss_type of the first run."
                )


_LAYOUT = ("input_ids", "branch", "lengths", "position_ids")


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
