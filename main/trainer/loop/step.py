"""One optimizer step: micro-batches forward and backward, gradients clipped and applied."""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch

from main.errors import TrainingError
from main.system.memory import Room
from main.trainer.arguments import LoopOptions
from main.trainer.loop.finite import what_is_not_finite
from main.trainer.loop.memory import all_computed, cut
from main.trainer.loop.opening import Opened
from main.trainer.loop.records import Means
from main.trainer.loop.state import RunState
from main.trainer.loop.task import Batch, MicroBatch, Task, to_device

log = logging.getLogger(__name__)


class Stepper:
    """Makes the optimizer steps of a run, each of the examples that it is given.

    warn: is told the number of a step that is skipped, and why.
    """

    def __init__(
        self,
        task: Task,
        options: LoopOptions,
        opened: Opened,
        state: RunState,
        warn: Callable[[int, str], None],
    ):
        self.warn = warn
        self.task, self.options, self.opened, self.state = task, options, opened, state
        alone = opened.placement.passes_alone
        self.room = Room(task.batch_size, "micro-batches", alone=alone)

    def step(self, micro_batches: list[MicroBatch]) -> int:
        """One step; returns the real tokens that this rank computed."""
        metrics = None
        while metrics is None:
            micro_batches = cut(micro_batches, self.room.rows)
            batches = [self.task.collate(micro.items) for micro in micro_batches]
            metrics = self._computed(micro_batches, batches)
        self.opened.placement.meet()
        self._apply(micro_batches, metrics)
        counted = zip(micro_batches, batches, strict=True)
        return sum(batch.tokens for micro, batch in counted if micro.counted)

    def rehearse(self, micro_batch: MicroBatch) -> None:
        """Forward and backward, to see whether memory suffices; the gradient is thrown away."""
        tried = None
        while tried is None:
            pieces = cut([micro_batch], self.room.rows)[:1]
            tried = self._computed(pieces, [self.task.collate(pieces[0].items)])
        self.opened.placement.zero_grad()

    def _computed(self, micro_batches: list[MicroBatch], batches: list[Batch]) -> Means | None:
        """None, and no gradient, where memory did not suffice, here or in another process."""
        totals, metrics, error = self._totals(micro_batches, batches), None, None
        try:
            metrics = self._accumulate(micro_batches, batches, totals)
        except Exception as failure:
            error = failure
        largest = max(len(micro.items) for micro in micro_batches)
        if all_computed(self.room, error, largest, self.opened.device):
            return metrics
        self.opened.placement.zero_grad()
        return None

    def _accumulate(
        self, micro_batches: list[MicroBatch], batches: list[Batch], totals: dict[str, float]
    ) -> Means:
        means, placement, device = Means(), self.opened.placement, self.opened.device
        for number, (micro, batch) in enumerate(zip(micro_batches, batches, strict=True), 1):
            last = number == len(batches)
            with placement.passing():
                output = self.task.loss(to_device(batch.tensors, device), totals)
                # Gradients are averaged over ranks while `totals` already counts all of them.
                loss = output.loss * (self.opened.world if micro.counted else 0.0)
                placement.backward(loss, last)
            if micro.counted:
                means.add(output.metrics)
        return means

    def _apply(self, micro_batches: list[MicroBatch], metrics: Means) -> None:
        placement, schedule = self.opened.placement, self.opened.schedule
        norm = placement.clip(self.options.max_grad_norm or math.inf)
        if math.isfinite(norm) or self.opened.run.precision == "fp16":
            if placement.step():
                schedule.step()
        else:
            self._not_finite(micro_batches, norm)
            schedule.step()
        placement.zero_grad()
        self.state.step += 1
        self.opened.run.step = self.state.step
        self.state.record({"grad_norm": (norm, 1)} if math.isfinite(norm) else {})
        self.state.record(metrics.state())

    def _totals(self, micro_batches: list[MicroBatch], batches: list[Batch]) -> dict[str, float]:
        """The counts of the whole optimizer step: over micro-batches, then over ranks."""
        names = sorted(batches[0].counts)
        mine: list[Any] = [
            sum(b.counts[name] for m, b in zip(micro_batches, batches, strict=True) if m.counted)
            for name in names
        ]
        if self.opened.world > 1:
            row = torch.tensor([mine], dtype=torch.float32, device=self.opened.device)
            copies = self.opened.processes // self.opened.world
            mine = self.opened.accelerator.gather(row)[::copies].double().sum(0).tolist()
        # A step without anything to count has a zero gradient, not a division by zero.
        return {name: max(value, 1.0) for name, value in zip(names, mine, strict=True)}

    def _not_finite(self, micro_batches: list[MicroBatch], norm: float) -> None:
        alone = self.opened.placement.passes_alone
        problem = (
            f"step {self.state.step + 1} of epoch {self.state.epoch}: the gradient norm is {norm}. "
            f"{what_is_not_finite(self.task, micro_batches, alone)}"
        )
        if self.options.non_finite == "stop":
            raise TrainingError(
                f"{problem} Look at these rows, lower lr, or skip such steps with "
                "non_finite='skip'."
            )
        log.warning("%s The step is skipped.", problem)
        self.warn(self.state.step + 1, f"{problem} The step is skipped.")
