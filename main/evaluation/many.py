"""Edit distances of many pairs: a bar where they take long, and the other processors."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from main.evaluation.edit_distance import shift_edit_distance
from main.system.processes import without_main

Pair = tuple[str, str]  # source, target

SHOWN_AFTER = 5.0  # seconds without a bar
ALONE = 2.0  # seconds after which other processors help, if the rest takes longer than that
CHUNK = 8  # pairs at once


def shift_edits(pairs: Sequence[Pair]) -> Iterator[int]:
    """`shift_edit_distance(*pair).total` of each pair, in order, each as soon as it is there."""
    bar = tqdm(
        _each(pairs),
        total=len(pairs),
        desc="scores",
        unit="rows",
        delay=SHOWN_AFTER,
        disable=not sys.stderr.isatty(),
        leave=False,
    )
    yield from bar


def _each(pairs: Sequence[Pair]) -> Iterator[int]:
    done = 0
    for source in (_here, _in_processes):
        for total in source(pairs[done:]):
            done += 1
            yield total
    yield from map(_total, pairs[done:])  # what processes that died left over


def _total(pair: Pair) -> int:
    return shift_edit_distance(*pair).total


def _here(pairs: Sequence[Pair]) -> Iterator[int]:
    """Until it is clear that several processors are worth their start."""
    started = time.monotonic()
    for done, pair in enumerate(pairs):
        seconds = time.monotonic() - started
        if done and seconds > ALONE and seconds / done * (len(pairs) - done) > ALONE:
            return
        yield _total(pair)


def _in_processes(pairs: Sequence[Pair]) -> Iterator[int]:
    """On all processors; ends early where there is only one, or a process dies."""
    workers = 1 if multiprocessing.current_process().daemon else _processors()
    if workers == 1 or not pairs:
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        with without_main():
            totals = pool.map(_total, pairs, chunksize=CHUNK)
        yield from totals
    except BrokenProcessPool:
        return
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
