"""What the processes of one run tell each other."""

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from main.errors import MainError

T = TypeVar("T")


def place() -> tuple[int, int]:
    """(rank, number of processes) of this process in the run."""
    from accelerate import PartialState

    # Without a running accelerate state there is one process; asking for a state would make one.
    if not PartialState._shared_state:
        return 0, 1
    return PartialState().process_index, PartialState().num_processes


def gather_objects(item: Any) -> list[Any]:
    """`item` of every process, in the order of the ranks; all processes must call it."""
    if place()[1] == 1:
        return [item]
    from accelerate.utils import gather_object

    return gather_object([item])


def together(work: Callable[[], T]) -> T:
    """What `work` returns; if it raises on one process, that error is raised on all of them.

    Without this the others would wait for ever for the process that failed.
    """
    result, failure = None, None
    try:
        result = work()
    except MainError as error:
        failure = error
    if failures := [error for error in gather_objects(failure) if error]:
        raise failure or failures[0]
    return cast(T, result)


def process_count() -> int:
    """Processes of this run, also before a trainer has started accelerate."""
    from accelerate import PartialState

    if PartialState._shared_state:
        return PartialState().num_processes
    return int(os.environ.get("WORLD_SIZE", "1"))
