"""When memory does not suffice: halve what is computed at once, and keep what is computed."""

import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from main.errors import MainError, TrainingError
from main.system.processes import this_process, uses_deepspeed

log = logging.getLogger(__name__)
T = TypeVar("T")
Item = TypeVar("Item")

# As torch, its allocators, CUDA's libraries and the system say it, in small letters.
_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "alloc_failed",
    "out_of_device_memory",
)
SMALLER_STEPS = (
    "use a smaller batch_size with more gradient_accumulation_steps, a smaller max_length, or "
    "gradient_checkpointing=True."
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which Python, torch and the system report that an allocation failed."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, MainError) or not isinstance(error, RuntimeError | OSError):
        return False
    return any(sign in str(error).lower() for sign in _SIGNS)


def release(error: BaseException) -> None:
    """Free what was computed until `error`: its frames hold it, and the device's allocator."""
    traceback.clear_frames(error.__traceback__)
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


class Room:
    """How many rows are computed at once; where memory does not suffice, half as many from then on.

    Args:
        rows: at most so many at first.
        what: they are, for messages.
        advice: what to do when memory does not suffice for one of them.
        alone: whether no other process waits for what this one computes. Where one does, nothing
            can be computed again in smaller pieces.
        kind: of the error when nothing helps.
    """

    def __init__(
        self,
        rows: int,
        what: str,
        advice: str = SMALLER_STEPS,
        alone: bool = True,
        kind: type[MainError] = TrainingError,
    ):
        self.rows, self.what, self.advice = rows, what, advice
        self.alone, self.kind = alone, kind

    def shrink(self, error: Exception, largest: int | None = None) -> None:
        """Half as many from now on, if the error says that memory did not suffice.

        Args:
            largest: rows that were computed when it happened; by default as many as may be.

        Raises:
            MainError: of `kind`: there is one row only, or other processes wait for this one.
            Exception: `error`, if it is another.
        """
        if not is_out_of_memory(error):
            raise error
        largest = min(self.rows, largest or self.rows)
        whole = not self.alone and (this_process().size > 1 or uses_deepspeed())
        if largest == 1 or whole:
            why = ", which the processes make together and not in smaller pieces" if whole else ""
            raise self.kind(
                f"out of memory at {self.what} of {largest} rows{why}: {self.advice}"
            ) from error
        self.rows = -(-largest // 2)
        log.warning("out of memory: %s of at most %d rows.", self.what, self.rows)
        release(error)

    def over(self, items: Sequence[Item], work: Callable[[Sequence[Item]], T]) -> Iterator[T]:
        """`work` of all items in order, in pieces for which memory suffices."""
        start = 0
        while start < len(items):
            piece = items[start : start + self.rows]
            try:
                found = work(piece)
            except Exception as error:
                self.shrink(error, len(piece))
                continue
            start += len(piece)
            yield found
