"""What a training method tells the loop: the whole of the interface between the two."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Row = Mapping[str, Any]
Metrics = dict[str, tuple[Any, float]]  # name -> (sum, count); the loop adds both, then divides


class Rows(Protocol):
    """A data set: `lengths[i]` are the tokens of `self[i]`, for grouping rows of similar length."""

    lengths: Sequence[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...


class MicroRows(NamedTuple):
    """Rows of one forward pass; `counted` is False for a filler whose loss must not count."""

    rows: list[Row]
    counted: bool = True


class Update(NamedTuple):
    """One optimizer step to make: its micro-batches, and what to record beside the loss's."""

    micro_batches: list[MicroRows]
    metrics: Metrics | None = None


@dataclass
class Batch:
    """Rows as tensors.

    tensors: arguments of the loss, B first.
    counts: what the loss terms are divided by, e.g. {"tokens": 812} or {"pairs": 4}. The loop adds
        them up over every micro-batch of the optimizer step and every process.
    tokens: real tokens, for the throughput.
    """

    tensors: dict[str, Tensor]
    counts: dict[str, float]
    tokens: int


class LossOutput(NamedTuple):
    """A scalar whose sum over the step's micro-batches is the step's loss, and what to record."""

    loss: Tensor
    metrics: Metrics


class Task(ABC):
    """A training method. The loop owns optimizer, schedule, ranks, records and checkpoints.

    A run calls, in this order: `open`; for each draw of rows `updates`, and for each update that it
    yields `collate` and `loss` of every micro-batch; `evaluate`, `sample_text`, `save` and `state`
    when they are due; `close`, whatever ended the run.
    """

    model: nn.Module  # its trainable parameters are optimised; replaced by its prepared form
    train_data: Rows
    eval_data: Rows | None
    batch_size: int
    batch_size_eval: int
    updates_per_step: int = 1  # optimizer steps made of one draw of rows (inner epochs)
    # Completions of a prompt: a drawn row comes so often, numbered 0, 1, ... in row["sample"].
    # batch_size then counts completions.
    samples_per_row: int = 1
    # Optimizer steps made, and those of the whole run; the loop keeps them.
    global_step: int = 0
    max_steps: int = 0
    # A context in which every weight is whole here, for passes that other processes do not make;
    # all processes must enter it. The loop sets it.
    at_hand: Callable[[], AbstractContextManager[None]] = nullcontext
    # Further directories of a checkpoint, named <name>_<step>: name -> what writes it.
    companions: Mapping[str, Callable[[Path], None]] = MappingProxyType({})

    @abstractmethod
    def collate(self, rows: list[Row]) -> Batch:
        """Rows -> tensors on the CPU."""

    @abstractmethod
    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        """The part of the step's loss that these rows make: sums divided by `totals`."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what a user loads: adapter, tokenizer. Called on the main process."""

    def open(self, device: torch.device) -> None:  # noqa: B027 (optional to override)
        """Called once when a run starts, after `model` was prepared and before a resume."""

    def close(self) -> None:  # noqa: B027 (optional to override)
        """Called once when the run ends, however it ends: release what `open` took."""

    def updates(self, drawn: list[MicroRows], step: int) -> Iterable[Update]:
        """The optimizer steps to make of the drawn rows, `updates_per_step` of them.

        Supervised methods train on the rows as they are. A method with rollouts generates and
        scores completions here and yields them once per inner epoch. `step` counts the optimizer
        steps before these; with a row's number and sample it makes a seed that does not depend on
        the processes.
        """
        yield Update(drawn)

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        """Metrics of evaluation rows; by default those of the loss."""
        batch = self.collate(rows)
        return self.loss(to_device(batch.tensors, device), batch.counts).metrics

    def sample_text(self) -> str:
        """Sample completions of the epoch as Markdown, for records and trackers; '' = none."""
        return ""

    def state(self) -> dict[str, Any]:
        """What else an exact resume needs, as JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (optional to override)
        """Take back what `state` returned."""


def to_device(tensors: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The tensors among the values, moved; other values as they are."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in tensors.items()
    }
