"""A step for which memory does not suffice is made in smaller pieces, on all processes alike."""

import torch

from main.system.memory import Room, is_out_of_memory
from main.system.processes import gather_objects, raise_together, this_process
from main.trainer.loop.task import MicroBatch


def all_computed(room: Room, error: Exception | None, largest: int, device: torch.device) -> bool:
    """Whether every process could compute; otherwise all of them have less room from now on.

    Args:
        error: what this process met, or None.
        largest: rows that it computed at once.

    Raises:
        TrainingError: one row is too much for one of them, or others wait in the middle of a pass.
        MainError, Exception: an error of another kind, on every process.
    """
    if this_process().size == 1 or not room.alone:
        if error is not None:
            room.shrink(error, largest)
        return error is None
    failed = torch.tensor(float(error is not None), device=device)
    torch.distributed.all_reduce(failed, torch.distributed.ReduceOp.MAX)
    if not failed.item():
        return True
    raise_together(None if error is None or is_out_of_memory(error) else error)
    told = gather_objects((largest, str(error)) if error else None)
    found = {rank: of_rank for rank, of_rank in enumerate(told) if of_rank is not None}
    rank = min(found, key=lambda rank: found[rank][0])
    room.shrink(error or MemoryError(f"rank {rank}: {found[rank][1]}"), found[rank][0])
    return False


def cut(micro_batches: list[MicroBatch], rows: int) -> list[MicroBatch]:
    """The same examples in micro-batches of at most `rows`."""
    return [
        micro._replace(items=micro.items[start : start + rows])
        for micro in micro_batches
        for start in range(0, len(micro.items), rows)
    ]
