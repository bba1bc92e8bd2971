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
        from torch.distributed import broadcast_object_list

        box: list[Any] = [None, None]
        raised: Exception | None = None
        if self.is_main:
            try:
                box[0] = action()
            except Exception as error:
                raised, box[1] = error, _told(error)
        broadcast_object_list(box, src=0)
        if raised:
            raise raised
        if box[1]:
            raise MainError(f"rank 0: {box[1]}")
        return box[0]

    def raise_together(self, error: Exception | None) -> None:
        """Wait for all processes; raise when one of them came with an error."""
        if self.size > 1:
            from torch.distributed import all_gather_object

            told: list[Any] = [None] * self.size
            all_gather_object(told, _told(error) if error else "")
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
    """From a running process group, or from a launcher's environment, which then gets one."""
    torch = sys.modules.get("torch")
    if not (torch and torch.distributed.is_available() and torch.distributed.is_initialized()):
        if not _launched():
            return Ranks(0, 1)
        _join()
    from torch.distributed import get_rank, get_world_size

    return Ranks(get_rank(), get_world_size())


def _launched() -> bool:
    return all(name in os.environ for name in _LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


def _join() -> None:
    """Start the process group: accelerate's own where it makes one, else gloo."""
    import torch
    from accelerate import PartialState

    # Without a GPU accelerate counts one process unless it is told to use the CPU.
    PartialState(cpu=not torch.accelerator.is_available())
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
