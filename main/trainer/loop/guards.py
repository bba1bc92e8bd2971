"""Stops that must not lose work: Ctrl-C and a polite kill."""

import signal
import threading
import time
from types import FrameType
from typing import Any

from main.system.processes import launched


class StopSignal:
    """Turns the first SIGINT or SIGTERM into a request that is honoured between two steps.

    A second one acts at once; of several processes not within `AGAIN` seconds of the first, as a
    launcher passes on what the terminal has sent to all already. Handlers are ours only between
    `arm` and `disarm`.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)
    AGAIN = 5.0

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._previous: dict[int, Any] = {}

    def arm(self) -> None:
        if threading.current_thread() is threading.main_thread() and not self._previous:
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def disarm(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        elif not launched() or time.monotonic() - self._received_at > self.AGAIN:
            handler = self._previous[number]
            self.disarm()
            if callable(handler):  # called: a signal raised here may be handled much later
                handler(number, frame)
            else:
                signal.raise_signal(number)

    def exception(self) -> BaseException:
        """What the signal would have raised on its own."""
        if self.received == signal.SIGTERM:
            return SystemExit(128 + signal.SIGTERM)
        return KeyboardInterrupt()
