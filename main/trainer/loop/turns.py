"""Runs of one process compute one at a time: what they compute with is the process's, not theirs.

Random numbers and accelerate's state are there once. A run has its turn from its caller's `next` to
its yield, and finds there what it left, so that two that go on in turn, or in two threads, come to
the bits of each alone.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")

_computing = threading.RLock()
_inside: list["Turn"] = []  # whose turn it is; another one begins within it where a run is closed
_installed: "Turn | None" = None  # whose state is accelerate's


class Turn:
    """Of one run, or of one trainer that is made: `with turn:` waits for those of other threads."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def __enter__(self) -> None:
        if not _computing.acquire(blocking=False):
            log.info("waiting for another thread of this process, whose run computes.")
            _computing.acquire()
        _inside.append(self)
        _install(self)

    def __exit__(self, *_: object) -> None:
        _inside.pop()
        if _inside:
            _install(_inside[-1])
        _computing.release()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Others may compute inside."""
        self.__exit__()
        try:
            yield
        finally:
            self.__enter__()

    def end(self) -> None:
        """The run is closed: what comes next is no longer its own."""
        global _installed
        if _installed is self:
            _installed = None


def in_turn(function: Callable[..., T]) -> Callable[..., T]:
    """A function that waits for the runs of other threads."""

    @functools.wraps(function)
    def waiting(*arguments: Any, **options: Any) -> T:
        with _computing:
            return function(*arguments, **options)

    return waiting


def _install(turn: Turn) -> None:
    """Accelerate's state becomes this run's; that of the run before is kept for its next turn."""
    global _installed
    if _installed is turn:
        return
    from accelerate.state import AcceleratorState

    state = AcceleratorState._shared_state
    if _installed is not None:
        _installed._state = dict(state)
    if _installed is not None or turn._state:
        state.clear()
        state.update(turn._state)
    _installed = turn
