"""Hours of use in minutes: epochs, predictions and broken-off streams in turn, and what they leave.

    python tests/soak.py MODEL FOLDER [rounds]    # writes FOLDER/soak.csv, a line a round

A round is three epochs of a trainer's call, ten predictions and two streams that their caller
breaks off. Memory is what is left after a collection.
"""

import csv
import gc
import itertools
import os
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import four_trainers

from main.predictor.hf import Predictor

EPOCHS, PREDICTIONS, STREAMS = 3, 10, 2  # a round
QUERIES = [f"{number}. Tell me about cats{' and dogs' * (number % 5)}." for number in range(40)]


class Left(NamedTuple):
    """What the process holds: MiB, and counts."""

    memory: float
    threads: int
    files: int
    children: int


def left() -> Left:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="utf-8")
    files = len(os.listdir("/proc/self/fd"))
    return Left(mib, threading.active_count(), files, len(children.split()))


def rounds(model: Path, count: int) -> list[Left]:
    """After each round; data and records lie in the working directory."""
    four_trainers.write_data(Path(), train=4, dev=2)
    trainer = four_trainers.make_trainer("lora", model)
    predictor = Predictor(str(model))
    queries = itertools.cycle(QUERIES)
    found = []
    for _ in range(count):
        options = {"num_epochs": EPOCHS, "save_strategy": "epoch", "save_total_limit": 1}
        for _ in four_trainers.run(trainer, "lora", **options, report_to="tensorboard"):
            pass
        for _ in range(PREDICTIONS):
            predictor(next(queries), max_new_tokens=8)
        for _ in range(STREAMS):
            stream = predictor.predict_stream([next(queries), next(queries)], max_new_tokens=20)
            next(stream)
            stream.close()
        found.append(left())
    return found


def main() -> None:
    model, folder, *rest = sys.argv[1:]
    path = Path(folder).resolve() / "soak.csv"
    os.chdir(folder)
    found = rounds(Path(model), int(rest[0]) if rest else 100)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("round", *Left._fields))
        writer.writerows((number, *row) for number, row in enumerate(found, 1))


if __name__ == "__main__":
    main()
