"""The processes of a run: which one this is, and what they tell each other.

A function that communicates must be called by all of them, in the same order.
"""

import atexit
import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, cast

from main.errors import MainError

T = TypeVar("T")

_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_a_copy = 1  # processes that hold one copy of the model together


class Member(NamedTuple):
    """One of `size` processes, or of `size` copies of the model."""

    rank: int
    size: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def this_process() -> Member:
    """Where this process stands; joins the others when a launcher has started several."""
    torch = sys.modules.get("torch")
    if not (torch and torch.distributed.is_available() and torch.distributed.is_initialized()):
        if not launched():
            return Member(0, 1)
        join()
    from torch.distributed import get_rank, get_world_size

    return Member(get_rank(), get_world_size())


def split_model(between: int) -> None:
    """From now on `between` neighbouring processes hold one copy of the model together."""
    global _a_copy
    _a_copy = between


def splits_copies() -> bool:
    """Whether several processes hold one copy together, and wait for each other in every pass."""
    return _a_copy > 1


def this_copy() -> Member:
    """Whose rows this process computes: its copy of the model among all copies."""
    here = this_process()
    return Member(here.rank // _a_copy, here.size // _a_copy)


def launched() -> bool:
    """Whether a launcher's environment says that there are several processes."""
    return launched_size() > 1


def launched_size() -> int:
    """How many processes a launcher's environment says there are; joins nobody."""
    return int(os.environ["WORLD_SIZE"]) if all(n in os.environ for n in _LAUNCHED) else 1


def uses_deepspeed() -> bool:
    """Whether `accelerate launch` was told to use DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def join() -> Any:
    """accelerate's state of this process, with a process group where there are several."""
    import torch
    from accelerate import PartialState

    state = PartialState._shared_state
    if launched() and state and state["num_processes"] == 1:
        PartialState._reset_state()  # made before, by somebody who did not say that CPUs are used
    on_cpu = not torch.accelerator.is_available()
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        _start_again()
    _leave_at_the_end()
    # Without a GPU accelerate counts one process unless it is told to use the CPU, or a backend.
    if launched() and on_cpu and uses_deepspeed():
        return PartialState(backend="gloo")
    return PartialState(cpu=on_cpu)


@functools.cache
def _leave_at_the_end() -> None:
    """A process group that is left to the end of Python may abort it: its threads still run."""
    atexit.register(_leave)


def _leave() -> None:
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _start_again() -> None:
    """The process group of a restart by torchrun, apart from what the attempt before left.

    All attempts share one store; addresses of dead processes in it would be waited for.
    """
    import torch
    from torch.distributed import PrefixStore, init_process_group, is_initialized
    from torch.distributed.rendezvous import rendezvous

    if is_initialized():
        return
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    store, rank, size = next(rendezvous("env://"))
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    init_process_group(
        torch.distributed.get_default_backend_for_device(device),
        store=PrefixStore(f"attempt {attempt}", store),
        rank=rank,
        world_size=size,
    )


def gather_objects(item: Any) -> list[Any]:
    """`item` of every process, in the order of the ranks."""
    size = this_process().size
    if size == 1:
        return [item]
    from torch.distributed import all_gather_object

    items: list[Any] = [None] * size
    all_gather_object(items, item)
    return items


def gather_shares(item: Any) -> list[Any]:
    """`item` of every copy of the model, in the order of `this_copy().rank`."""
    return gather_objects(item)[::_a_copy]


def raise_together(error: Exception | None) -> None:
    """Wait for all processes; every one raises when one of them came with an error."""
    try:
        told = gather_objects(f"{type(error).__name__}: {error}" if error else "")
    except Exception as broken:  # another process is gone
        raise error or broken from None
    if error:
        raise error
    for rank, text in enumerate(told):
        if text:
            raise MainError(f"rank {rank}: {text}")


def together(work: Callable[[], T]) -> T:
    """What `work` returns; if it raises on one process, all raise.

    Without this the others would wait for ever for the process that failed.
    """
    result, error = _attempt(work)
    raise_together(error)
    return cast(T, result)


def as_it_is(work: Callable[[], T]) -> T:
    """What `work` returns; instead of `together` where an error cannot wait for the others."""
    return work()


def decide(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, the only one to do it."""
    result = together(lambda: work() if this_process().is_main else None)
    return cast(T, gather_objects(result)[0])


def once_a_copy(work: Callable[[], T]) -> T:
    """What `work` returns in the first of the processes that hold a copy of the model together.

    For what must come out alike in all of them and need not: a reward model, an engine.
    """
    first = this_process().rank // _a_copy * _a_copy
    result = together(lambda: work() if this_process().rank == first else None)
    return cast(T, result if _a_copy == 1 else gather_objects(result)[first])


def one_first(work: Callable[[], T]) -> T:
    """What `work` returns; one process a machine goes first, and the others find what it made."""
    if this_process().size == 1:
        return work()
    with join().local_main_process_first():
        result, error = _attempt(work)  # raised inside, it would leave the others waiting
    raise_together(error)
    return cast(T, result)


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, error


@contextmanager
def without_main() -> Iterator[None]:
    """Processes that start in the block would run the caller's script, to import it as their main.

    With its file out of sight they do not, and a script needs no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name) for name in ("__file__",) if name in main.__dict__}
    spec, main.__spec__ = main.__spec__, None
    try:
        yield
    finally:
        main.__dict__.update(hidden)
        main.__spec__ = spec
