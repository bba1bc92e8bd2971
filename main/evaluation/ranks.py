"""Several processes on one task: who they are, what they agree on, who takes which batch."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from main.errors import MainError

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Ranks(NamedTuple):
    """This process among `size`. All processes must call the methods, in the same order."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def decide(self, action: Callable[[], T]) -> T:
        """What `action` returns in the main process; what it raises there is raised everywhere."""
        if self.size == 1:
            return action()
        from accelerate.utils import broadcast_object_list

        box: list[Any] = [None, None]
        raised: Exception | None = None
        if self.is_main:
            try:
                box[0] = action()
            except Exception as error:
                raised, box[1] = error, _told(error)
        broadcast_object_list(box)
        if raised:
            raise raised
        if box[1]:
            raise MainError(f"rank 0: {box[1]}")
        return box[0]

    def raise_together(self, error: Exception | None) -> None:
        """Wait for all processes; raise when one of them came with an error."""
        if self.size > 1:
            from accelerate.utils import gather_object

            told = gather_object([_told(error) if error else ""])
            others = [f"rank {rank}: {text}" for rank, text in enumerate(told) if text]
            if others and not error:
                raise MainError(others[0])
        if error:
            raise error


class Claims:
    """Batches handed out by need: whoever makes the batch's file first has it.

    Args:
        folder: a folder that all processes see, new for this run; None: one process, all is its.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder

    def take(self, number: int) -> bool:
        """Whether batch `number` is now this process's; False for all once one has stopped."""
        if self.folder is None:
            return True
        if (self.folder / "stop").exists():
            return False
        try:
            (self.folder / str(number)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def stop(self) -> None:
        """Let nobody take any more batches."""
        if self.folder is not None:
            (self.folder / "stop").touch()

    def taken(self) -> int:
        """How many batches are taken, by any process."""
        return len(os.listdir(self.folder)) if self.folder is not None else 0


def current_ranks() -> Ranks:
    """From a running accelerate or torch.distributed, or from a launcher's environment."""
    if not (_launched() or _accelerate_runs()):
        return Ranks(0, 1)
    from accelerate import PartialState

    state = PartialState()
    return Ranks(state.process_index, state.num_processes)


def _launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def _accelerate_runs() -> bool:
    state = sys.modules.get("accelerate.state")
    return state is not None and bool(state.PartialState._shared_state)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
