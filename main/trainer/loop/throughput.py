"""How fast a run is, and how near to what the machine can do.

tokens_per_second   real tokens trained on, of all processes together
tflops              10^12 FLOPs a second that the passes needed, of all processes together
share_of_limit      the same as a share of the rate at which this device multiplies matrices of
                    the model's own shapes, measured when the run begins; of drawing and of
                    judges it counts the time, and of vLLM's drawing and of judges no FLOPs
peak_memory         GiB, the largest of any process: of the device's memory, or on a CPU of the
                    process from its start
"""

import functools
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from main.models.work import Work
from main.system.processes import gather_objects
from main.trainer.loop.task import Metrics, Run

MEASURED = ("tokens_per_second", "tflops", "share_of_limit", "peak_memory")  # of the machine
_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
SECONDS = 0.2  # for the measurement of the limit, about
MOST_ROWS = 8192


class Throughput:
    """Counts what is done from `begin` to `end`.

    Args:
        work: where the passes of the model are noted; without it tokens alone are counted.
        run: what is computed with.
        world: copies of the model that share the steps.
    """

    def __init__(self, work: Work | None, run: Run, world: int):
        self.work, self.world = work, world
        self.limit = _limit(work, run) if work else 0.0
        self.begin()

    def begin(self) -> None:
        self._began, self._flops = time.perf_counter(), self._noted()

    def end(self, tokens: int) -> Metrics:
        """Of `tokens` of this process; sums over the processes are divided by their mean time."""
        seconds, flops = time.perf_counter() - self._began, self._noted() - self._flops
        found: Metrics = {"tokens_per_second": (tokens, seconds / self.world)}
        if self.limit:
            found["tflops"] = flops / 1e12, seconds / self.world
            found["share_of_limit"] = flops / self.limit, seconds
        return found

    def _noted(self) -> float:
        return self.work.flops if self.work else 0.0


def _limit(work: Work, run: Run) -> float:
    of = work.matrices
    dtype = of.dtype if run.precision == "no" else getattr(torch, _DTYPES[run.precision])
    return limit_of(of.largest, dtype, run.device)


@functools.lru_cache
def limit_of(shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> float:
    """FLOPs a second of products with a matrix of this shape: the best of several sizes.

    It draws no random numbers, takes a fraction of a second, and once a process.
    """
    rows, columns = shape
    matrix = _numbers(rows, columns, dtype, device)
    best, began, many = 0.0, time.perf_counter(), 256
    while time.perf_counter() - began < SECONDS:
        states = _numbers(many, columns, dtype, device)
        for _ in range(3):
            with _timed(device) as taken:
                torch.nn.functional.linear(states, matrix)
            best = max(best, 2.0 * many * rows * columns / taken[0])
        many = min(2 * many, MOST_ROWS)
    return best


def peak_memory(device: torch.device) -> float:
    """GiB, of all processes the largest."""
    on_gpu = device.type == "cuda"
    mine = torch.cuda.max_memory_allocated(device) if on_gpu else most_resident_memory()
    return max(gather_objects(mine / 2**30))


def most_resident_memory() -> int:
    """Bytes, the most that this process has held."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _numbers(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Of many values: a device may draw less power, and run faster, where all are the same."""
    return (torch.arange(rows * columns, device=device) % 251 / 251 - 0.5).to(dtype).view(rows, -1)


@contextmanager
def _timed(device: torch.device) -> Iterator[list[float]]:
    taken: list[float] = []
    _wait(device)
    began = time.perf_counter()
    yield taken
    _wait(device)
    taken.append(time.perf_counter() - began)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
