"""Samples -> the tensors of a forward pass: the one collate of GRPO and PPO."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from main.trainer.loop.task import to_device
from main.trainer.online.sample import Sample
from main.trainer.policy.branches import lay_out


@dataclass(frozen=True)
class SampleBatch:
    """B completions of at most T tokens, N in all, padded on the right.

    input_ids, branch: (R, L), prompts and completions: R = B, or a row for each group of
        neighbours with one prompt, see main/trainer/policy/branches.py; position_ids: (R, L) then.
    rows: of each row the tokens of its prompt and completions, as `LogprobModel` takes `lengths`.
    present: (B, T) bool, True for the tokens of a completion.
    mask: (B, T) bool, True for those that the loss counts.
    The others: (B, T), as in `Sample`; None where the samples have none.
    """

    input_ids: Tensor
    branch: Tensor
    present: Tensor
    mask: Tensor
    sampling_logprobs: Tensor
    rows: list[list[int]]
    position_ids: Tensor | None = None
    advantages: Tensor | None = None
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    forks: Tensor | None = None
    old_values: Tensor | None = None
    returns: Tensor | None = None

    def to(self, device: torch.device) -> "SampleBatch":
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return SampleBatch(**to_device(fields, device))

    def inputs(self) -> dict[str, Any]:
        """The arguments of a `LogprobModel`, which scores all tokens of the completions."""
        found: dict[str, Any] = {"input_ids": self.input_ids, "loss_mask": self.branch > 0}
        if self.position_ids is not None:
            found |= {"branch": self.branch, "position_ids": self.position_ids}
        return found | {"lengths": self.rows}

    def by_completion(self, values: Tensor) -> Tensor:
        """(N,) values of all tokens, completion after completion -> (B, T), 0 at the padding."""
        return values.new_zeros(self.present.shape).masked_scatter(self.present, values)

    @property
    def learnt_from(self) -> Tensor:
        """(B, T) bool, the tokens that the policy's own loss is about."""
        return self.mask if self.forks is None else self.mask & self.forks

    def over(self, values: Tensor) -> tuple[Tensor, float]:
        """Sum and number of (B, T) values over the tokens that count."""
        return values.detach().masked_fill(~self.mask, 0.0).sum(), float(self.mask.sum())


_OPTIONAL = (
    *("advantages", "old_logprobs", "ref_logprobs", "teacher_logprobs", "forks", "old_values"),
    "returns",
)


def collate(samples: Sequence[Sample], pad_id: int, share_prompts: bool) -> SampleBatch:
    """Tensors on the CPU.

    Args:
        share_prompts: one row of tokens for each group of neighbours with the same prompt.
    """
    groups = [list(group) for _, group in groupby(samples, key=lambda sample: sample.row["row"])]
    tensors = lay_out(
        [group[0].row["prompt_ids"] for group in groups],
        [[sample.ids for sample in group] for group in groups],
        pad_id,
        share_prompts,
    )
    lengths = torch.tensor(tensors.pop("lengths"))
    for name in _OPTIONAL:
        values = [getattr(sample, name) for sample in samples]
        if all(len(v) == len(s.ids) for v, s in zip(values, samples, strict=True)):
            tensors[name] = _padded(values)
    return SampleBatch(
        present=torch.arange(int(lengths.max())) < lengths[:, None],  # (B, T)
        mask=_padded([sample.mask for sample in samples]),
        sampling_logprobs=_padded([sample.sampling_logprobs for sample in samples]),
        **tensors,
    )


def _padded(values: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(values), batch_first=True)
