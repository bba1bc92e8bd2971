"""What a training method tells the loop: the whole of the interface between the two."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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
    """A training method. The loop owns optimizer, schedule, ranks, records and checkpoints."""

    model: nn.Module  # its trainable parameters are optimised; replaced by its prepared form
    train_data: Rows
    eval_data: Rows | None
    batch_size: int
    batch_size_eval: int
    updates_per_step: int = 1  # optimizer steps made of one draw of rows (inner epochs)

    @abstractmethod
    def collate(self, rows: list[Row]) -> Batch:
        """Rows -> tensors on the CPU."""

    @abstractmethod
    def loss(self, tensors: dict[str, Any], totals: Mapping[str, float]) -> LossOutput:
        """The part of the step's loss that these rows make: sums divided by `totals`."""

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what a user loads: adapter, tokenizer. Called on the main process."""

    def updates(self, drawn: list[MicroRows]) -> Iterable[list[MicroRows]]:
        """The micro-batches of each optimizer step to make of the drawn rows.

        Supervised methods train on the rows as they are. A method with rollouts generates and
        scores completions here and yields them once per inner epoch.
        """
        yield drawn

    def evaluate(
        self, rows: list[Row], tensors: dict[str, Any], counts: dict[str, float]
    ) -> Metrics:
        """Metrics of evaluation rows; by default those of the loss."""
        return self.loss(tensors, counts).metrics

    def state(self) -> dict[str, Any]:
        """What else an exact resume needs, as JSON values."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027 (optional to override)
        """Take back what `state` returned."""
