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

from main.loaders.shares import AGAIN, Share
from main.models.work import Work
from main.trainer.arguments import Precision

Row = Mapping[str, Any]
Metrics = dict[str, tuple[Any, float]]  # name -> (sum, count); the loop adds both, then divides


class Rows(Protocol):
    """A data set.

    lengths: of each row its tokens, for grouping rows of similar length.
    digest: changes with any value of any row, and with their order.

    A mixture has `shares` besides, see `shares_of`.
    """

    @property
    def lengths(self) -> Sequence[int]: ...

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


def shares_of(rows: Any) -> Sequence[Share]:
    """Of rows that are a mixture the attribute `shares`; of others nothing."""
    return getattr(rows, "shares", ())


class MicroBatch(NamedTuple):
    """What one forward pass is made of.

    items: examples, as `Task.example` makes them of rows, or what `Task.updates` made of these.
    counted: False for a filler whose loss must not count.
    part: of the draw, the optimizer step that it belongs to, from 0 to `steps_per_draw` - 1.
    """

    items: list[Any]
    counted: bool = True
    part: int = 0


class Update(NamedTuple):
    """One optimizer step to make: its micro-batches, and what to record beside the loss's."""

    micro_batches: list[MicroBatch]
    metrics: Metrics | None = None


@dataclass
class Batch:
    """Examples as tensors.

    tensors: what the loss takes: a dict of tensors, B first, or an object with a method `to`.
    counts: what the loss terms are divided by, e.g. {"tokens": 812} or {"pairs": 4}. The loop adds
        them up over every micro-batch of the optimizer step and every process.
    tokens: real tokens, for the throughput.
    """

    tensors: Any
    counts: dict[str, float]
    tokens: int


class LossOutput(NamedTuple):
    """A scalar whose sum over the step's micro-batches is the step's loss, and what to record."""

    loss: Tensor
    metrics: Metrics


class Answered(NamedTuple):
    """Answers to evaluation rows.

    scores: name -> a score of all of them, on every process alike.
    table: a line for each, on the main process: title -> cell.
    """

    scores: dict[str, float]
    table: list[dict[str, Any]]


@dataclass
class Run:
    """What a task sees of the run that it is part of; the loop keeps it up to date.

    model: the task's model as the placement prepared it; passes with a gradient go through it.
    device: where its tensors belong.
    precision: of the forward pass, as the run found it possible.
    step, total_steps: optimizer steps made, and those of the whole run.
    at_hand: a context in which every weight is whole here, for passes that other processes do not
        make; all processes must enter it.
    """

    model: nn.Module
    device: torch.device
    precision: Precision = "no"
    step: int = 0
    total_steps: int = 0
    at_hand: Callable[[], AbstractContextManager[None]] = nullcontext


class Task(ABC):
    """One run's training method, configured. The loop owns optimizer, ranks, records, checkpoints.

    A run calls, in this order: `load_state` if it goes on from a checkpoint; `open`; for each draw
    of rows `updates`, and for each update that it yields `collate` and `loss` of every micro-batch;
    `evaluate`, `answered`, `sample_text`, `save`, `state` and `tensors` when they are due; `close`,
    whatever ended the run. It sets no attribute of the task.
    """

    model: nn.Module  # its trainable parameters are optimised
    train_data: Rows
    eval_data: Rows | None
    batch_size: int
    batch_size_eval: int
    updates_per_draw: int = 1  # optimizer steps made of one draw of rows (inner epochs)
    steps_per_draw: int = 1  # how many steps' rows are drawn at once
    # Completions of a prompt: a drawn row comes so often, numbered 0, 1, ... in `example`.
    # batch_size then counts completions.
    samples_per_row: int = 1
    # Whether `evaluate` waits for no other process, but for the first rows of an evaluation.
    evaluates_alone: bool = True
    # Whether `updates` only lays out the rows, so that the longest can be tried beforehand.
    rehearses: bool = True
    # Further directories of a checkpoint, named <name>_<step>: name -> what writes it.
    companions: Mapping[str, Callable[[Path], None]] = MappingProxyType({})
    work: Work | None = None  # where the model's passes are noted; None = tokens alone are counted
    run: Run  # from `open` on

    def example(self, row: Row, number: int) -> Any:
        """What is drawn of a row, for the `number`-th time of `samples_per_row`."""
        return row

    def rate(self, name: str) -> float:
        """By which factor the parameter of `model` with this name learns faster than `lr`."""
        return 1.0

    def source(self, example: Any) -> int:
        """The number of the row that an example was made of, for messages."""
        return example["row"] % AGAIN

    @abstractmethod
    def collate(self, examples: list[Any]) -> Batch:
        """Examples -> tensors on the CPU."""

    @abstractmethod
    def loss(self, tensors: Any, totals: Mapping[str, float]) -> LossOutput:
        """The part of the step's loss that these examples make: sums divided by `totals`.

        A pure function of the tensors: they are not changed.
        """

    @abstractmethod
    def save(self, directory: Path) -> None:
        """Write what a user loads: adapter, tokenizer. Called on the main process."""

    def open(self, run: Run) -> None:
        """Called once when a run starts, after `model` was prepared and before a resume."""
        self.run, self.model = run, run.model

    def close(self) -> None:  # noqa: B027 (optional to override)
        """Called once when the run ends, however it ends: release what `open` took."""

    def updates(self, drawn: list[MicroBatch], step: int) -> Iterable[Update]:
        """The optimizer steps to make of the drawn examples, `updates_per_draw` of them.

        Supervised methods train on the rows as they are. A method with rollouts generates and
        scores completions here and yields them once per inner epoch. `step` counts the optimizer
        steps before these; with a row and the number of its sample it makes a seed that does not
        depend on the processes.
        """
        yield Update(drawn)

    def evaluated_names(self) -> list[str] | None:
        """The names of what `evaluate` measures, or patterns of them; None = not known before."""
        return None

    def evaluate(self, rows: list[Row], device: torch.device) -> Metrics:
        """Metrics of evaluation rows; by default those of the loss."""
        batch = self.collate(rows)
        return self.loss(to_device(batch.tensors, device), batch.counts).metrics

    def answered_names(self) -> list[str]:
        """The names of the scores in `answered`, or patterns of them."""
        return []

    def answered(self) -> Answered | None:
        """Answers of the model as it is, where the run asks for them: before the first step, and at
        each evaluation. All processes call it, without gradients and in evaluation mode."""
        return None

    def sample_text(self) -> str:
        """Sample completions of the epoch as Markdown, for records and trackers; '' = none."""
        return ""

    # -- checkpoints

    def identity(self) -> dict[str, Any]:
        """What the run's numbers depend on beside rows, seed and the call's options: JSON values.

        By content and by the names that a user knows: base, adapter, options of the constructor.
        """
        return {}

    def around(self) -> dict[str, Any]:
        """What is noted, and told when a resumed run has others, but is no part of a run."""
        return {}

    def write_settings(self, folder: Path) -> None:  # noqa: B027 (optional to override)
        """Write what a user starts the run again with. Called on the main process."""

    def state(self) -> dict[str, Any]:
        """What else an exact resume needs, as JSON values."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What else of that is tensors, such as the weights of a reference; on the CPU."""
        return {}

    def load_state(  # noqa: B027 (optional to override)
        self, state: dict[str, Any], tensors: dict[str, Tensor]
    ) -> None:
        """Take back what `state` and `tensors` returned; called before `open`."""


def to_device(tensors: Any, device: torch.device) -> Any:
    """An object with a method `to`, moved; of a dict the tensors, other values as they are."""
    if hasattr(tensors, "to"):
        return tensors.to(device)
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in tensors.items()
    }
