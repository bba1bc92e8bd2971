"""A completion on its way from the sampler to the loss, and batches of them as tensors."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from main.trainer.branches import lay_out, visible
from main.trainer.logprobs import TokenLogprobs
from main.trainer.rollout import Completion
from main.trainer.task import Row

SAMPLE = "completion"  # the field of a row that holds its Sample


@dataclass
class Sample:
    """One completion of one prompt, and what was found out about it.

    reward: the weighted sum; by_function: the single rewards, NaN where one does not apply; notes:
        what reward functions logged of it.
    old_logprobs, ref_logprobs: (T,) of its tokens, before the first update and by the reference.
    """

    completion: Completion
    text: str
    reward: float = 0.0
    by_function: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    overlong: float = 0.0
    advantage: float = 0.0
    old_logprobs: Tensor | None = None
    ref_logprobs: Tensor | None = None


def key(row: Row) -> tuple[int, int]:
    """What names a sample in every process: source row and number of the sample."""
    return row["row"], row["sample"]


def seed_of(seed: int, step: int, row: Row, attempt: int = 0) -> int:
    """The seed of a sample; it does not depend on processes, batches or anything else."""
    return random.Random(f"{seed}-{step}-{row['row']}-{row['sample']}-{attempt}").getrandbits(63)


def collate(rows: Sequence[Row], pad_id: int, share: bool, masked: Sequence[bool]) -> dict:
    """Rows with samples -> tensors of B completions.

    Args:
        share: one row of tokens for each group of neighbours with the same prompt.
        masked: completions that are left out of the loss.

    Returns:
        input_ids, branch, position_ids: see `main.trainer.branches`; present (B, T), True for the
        tokens of a completion; mask (B, T), those of them that count; advantages (B, 1);
        sampling_logprobs and, where the samples have them, ref_logprobs and old_logprobs (B, T);
        samples, the samples themselves.
    """
    samples: list[Sample] = [row[SAMPLE] for row in rows]
    groups = [list(group) for _, group in groupby(rows, key=lambda row: row["row"])]
    tensors = lay_out(
        [group[0]["prompt_ids"] for group in groups],
        [[row[SAMPLE].completion.ids for row in group] for group in groups],
        pad_id,
        share,
    )
    lengths = torch.tensor(tensors.pop("lengths"))
    present = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T)
    tensors |= {
        "present": present,
        "mask": present & ~torch.tensor(masked)[:, None],
        "advantages": torch.tensor([[sample.advantage] for sample in samples]),
        "sampling_logprobs": _padded(
            [torch.tensor(sample.completion.sampling_logprobs) for sample in samples]
        ),
        "samples": samples,
    }
    for name in ("old_logprobs", "ref_logprobs"):
        found = [getattr(sample, name) for sample in samples]
        if all(values is not None for values in found):
            tensors[name] = _padded(found)
    return tensors


def inputs(tensors: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a `LogprobModel` for the tensors of `collate`."""
    branch = tensors["branch"]
    found = {"input_ids": tensors["input_ids"], "loss_mask": branch > 0}
    if "position_ids" in tensors:
        shared = {"attention_mask": visible(branch), "position_ids": tensors["position_ids"]}
        found |= shared
    return found


def by_completion(values: Tensor, present: Tensor) -> Tensor:
    """(N,) values of all tokens, completion after completion -> (B, T), 0 at the padding."""
    return values.new_zeros(present.shape).masked_scatter(present, values)


def keep(output: TokenLogprobs, present: Tensor, samples: Sequence[Sample], name: str) -> None:
    """Store the log-probabilities with their samples, as `old_logprobs` or `ref_logprobs`."""
    parts = output.logprobs.detach().cpu().split(present.sum(1).tolist())
    for sample, part in zip(samples, parts, strict=True):
        setattr(sample, name, part)


def _padded(values: Sequence[Tensor]) -> Tensor:
    return pad_sequence(list(values), batch_first=True)
