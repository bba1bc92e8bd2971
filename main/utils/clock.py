"""When the steps of a run were recorded."""

import statistics
import time
from typing import Any

from accelerate.tracking import GeneralTracker


class Clock(GeneralTracker):
    """A tracker that notes when steps were recorded."""

    name = "clock"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, float]] = []

    @property
    def tracker(self) -> "Clock":
        return self

    def store_init_configuration(self, values: dict) -> None: ...

    def log(self, values: dict, step: int | None = None, **kwargs: Any) -> None:
        self.seen.append((int(step or 0), time.perf_counter()))

    def finish(self) -> None: ...

    def seconds(self) -> tuple[float, float]:
        """Of a step, the median, and when the first draw was done with."""
        pairs = zip(self.seen, self.seen[1:], strict=False)
        each = [(t2 - t1) / (s2 - s1) for (s1, t1), (s2, t2) in pairs if s2 > s1]
        return statistics.median(each), self.seen[0][1]
