"""One run a folder: another one is refused, and one of this process that waits is ended."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

from main.system.locks import Lock, take
from main.system.processes import decide, this_process
from main.trainer.loop.home import Home

log = logging.getLogger(__name__)

LOCK = ".lock"
Itself = Callable[[], Generator | None]  # gives a run as long as a caller holds it
_runs: dict[Path, Itself] = {}  # by the folder of their records


@contextlib.contextmanager
def alone(home: Home, saves: bool, run: Itself) -> Iterator[None]:
    """Inside, the folders of `home` are this run's. All processes must enter it.

    A run of this process that waits at a yield for its caller is closed, as `close()` does it.

    Args:
        saves: the run writes or reads checkpoints, not records alone.
        run: gives the generator that waits at its yields. Not the generator itself: it holds this
            frame, and a circle would close it at some collection instead of at the caller's break.

    Raises:
        InUseError: another run is at work there; it says which and since when.
        DiskError: the folders cannot be written.
    """
    key = home.records.resolve()
    _end_waiting(key)
    folders = [home.records, *([home.checkpoints] if saves else [])]
    locks: list[Lock] = []
    try:
        decide(lambda: locks.extend(_take(folder, home.task_name) for folder in folders))
        _runs[key] = run
        yield
    finally:
        _runs.pop(key, None)
        for lock in locks:
            lock.release()


def _take(folder: Path, task_name: str) -> Lock:
    return take(folder / LOCK, f"a run of task '{task_name}'")


def _end_waiting(key: Path) -> None:
    earlier = _runs.get(key)
    waiting = earlier() if earlier else None
    if waiting is None or inspect.getgeneratorstate(waiting) == inspect.GEN_RUNNING:
        return  # one at work in another thread holds its lock
    if this_process().is_main:
        log.warning("the run that waited for its caller in %s is ended: another begins.", key)
    waiting.close()
