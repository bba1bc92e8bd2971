"""When memory does not suffice: halve what is computed at once, and keep what is computed."""

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from main.errors import TrainingError
from main.system.processes import this_process, uses_deepspeed
from main.trainer.loop.guards import is_out_of_memory
from main.trainer.loop.task import MicroBatch

log = logging.getLogger(__name__)
T = TypeVar("T")


class Room:
    """How many rows are computed at once in this run; the task's own number stays as it is."""

    def __init__(self, rows: int, what: str):
        self.rows, self.what = rows, what

    def shrink(self, error: Exception, largest: int | None = None) -> None:
        """Half as many from now on, if the error says that memory did not suffice.

        Args:
            largest: rows that were computed when it happened; by default as many as may be.

        Raises:
            TrainingError: there is one row only, or other processes wait for this one.
            Exception: `error`, if it is another.
        """
        if not is_out_of_memory(error):
            raise error
        largest = min(self.rows, largest or self.rows)
        if this_process().size > 1 or largest == 1 or uses_deepspeed():
            raise TrainingError(
                f"out of memory at {self.what} of {largest} rows: use a smaller batch_size with "
                "more gradient_accumulation_steps, a smaller max_length, or "
                "gradient_checkpointing=True."
            ) from error
        self.rows = largest // 2
        log.warning("out of memory: %s of at most %d rows.", self.what, self.rows)
        traceback.clear_frames(error.__traceback__)  # they hold what was computed so far
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def fitting(self, work: Callable[[int], T]) -> T:
        """`work` with the number of rows that memory suffices for."""
        while True:
            try:
                return work(self.rows)
            except Exception as error:
                self.shrink(error)

    def cut(self, micro_batches: list[MicroBatch]) -> list[MicroBatch]:
        """The same examples in pieces that fit."""
        return [
            MicroBatch(micro.items[start : start + self.rows], micro.counted)
            for micro in micro_batches
            for start in range(0, len(micro.items), self.rows)
        ]
