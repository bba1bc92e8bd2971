"""A run is opened: ranks, placement, optimizer and schedule; and closed, whatever ended it."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from main.errors import ConfigError, TrainingError
from main.models.compiled import compile_layers
from main.system.processes import this_copy, this_process
from main.trainer.arguments import LoopOptions
from main.trainer.loop.due import Length
from main.trainer.loop.home import Home
from main.trainer.loop.launch import make_accelerator, make_placement
from main.trainer.loop.optimizer import make_optimizer, make_schedule
from main.trainer.loop.task import Run, Task

log = logging.getLogger(__name__)


class Opened:
    """What a run computes with, until `close`.

    rank, world: this process's copy of the model among all copies; processes: of the whole run.
    step_rows: rows of an optimizer step, over micro-batches and copies.
    run: what the task sees of it.
    """

    def __init__(self, task: Task, options: LoopOptions, home: Home):
        self.task, self._closers = task, ExitStack()
        try:
            self._open(options, home)
        except BaseException:
            self.close()
            raise

    def _open(self, options: LoopOptions, home: Home) -> None:
        task = self.task
        self.at_the_end(_forget_state)
        self.accelerator, precision = make_accelerator(options, task, home)
        self.device = self.accelerator.device
        self.processes, (self.rank, self.world) = this_process().size, this_copy()
        self._check_processes()
        self.step_rows = step_rows(task, options)
        drawn = self.step_rows * task.steps_per_draw
        draws = -(-len(task.train_data) * task.samples_per_row // drawn)
        self.length = Length.of(options, draws, task.updates_per_draw)
        from accelerate.utils import set_seed

        set_seed(home.seed + self.rank)  # processes with the same rows drop out the same
        optimizer = make_optimizer(task.model, options, task.rate)
        task.model.train()
        self.placement = make_placement(self.accelerator, task.model, optimizer)
        self.at_the_end(self._release)
        if options.torch_compile:
            self.at_the_end(compile_layers(task.model))
        total = self.length.total_steps
        placement = self.placement
        self.run = Run(placement.model, self.device, precision, 0, total, placement.at_hand)
        self.schedule = make_schedule(placement.torch_optimizer, options, total)

    def at_the_end(self, closer: Callable[[], Any]) -> None:
        """Call it in `close`, the latest first, whatever the others raise."""
        self._closers.callback(closer)

    def close(self) -> None:
        self._closers.close()

    def _release(self) -> None:
        self.placement.close()
        del self.placement, self.run.at_hand
        self.accelerator.free_memory()

    def _check_processes(self) -> None:
        if self.accelerator.num_processes != self.processes:
            raise TrainingError(
                f"accelerate counts {self.accelerator.num_processes} processes where "
                f"{self.processes} were launched: make the trainer before any Accelerator or "
                "PartialState."
            )


def _forget_state() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # the next trainer may want another precision


def step_rows(task: Task, options: LoopOptions) -> int:
    """Rows, or completions, of an optimizer step over micro-batches and copies of the model.

    Raises:
        ConfigError: they cannot be cut into whole groups.
    """
    rows = task.batch_size * options.gradient_accumulation_steps * this_copy().size
    if rows % task.samples_per_row:
        raise ConfigError(
            f"an optimizer step of {rows} completions (batch size x accumulation x "
            f"processes) cannot be cut into groups of {task.samples_per_row}."
        )
    return rows
