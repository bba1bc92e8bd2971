"""Sides that take turns, each run in a process of its own: its peak memory is its own.

A benchmark gives `compare` one function a side, which runs the training and returns its figures
(those of `usage` among them), and gets the command line, the rounds, the medians, the ratios and
the file of results.

Seconds are those between two calls of `usage`. Where CPU time falls below wall time x threads
another process held the cores: then the ratio of CPU times is the one to quote.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kept import keep

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate")
COSTS = ("wall", "cpu", "peak_mib")

# What every trainer of TRL is told: nothing beside the training itself.
TRL_PLAIN: dict[str, Any] = {
    "output_dir": "trl",
    "num_train_epochs": 1,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "bf16": False,
    "save_strategy": "no",
    "report_to": "none",
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}

Figures = dict[str, Any]
Rounds = dict[str, list[Figures]]


def usage(since: Figures | None = None) -> Figures:
    """Seconds of wall and CPU time since then, and the most memory this process ever held."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    now = {"wall": time.perf_counter(), "cpu": spent.ru_utime + spent.ru_stime}
    if since:
        now = {name: now[name] - since[name] for name in now}
    return now | {"peak_mib": spent.ru_maxrss / 1024}


def compare(
    script: str,
    document: str,
    sides: Mapping[str, Callable[[argparse.Namespace], Figures]],
    select: Callable[[argparse.Namespace, Path], Figures],
    data: str,
    numbers: Mapping[str, int],
    settings: Mapping[str, Any],
    summarise: Callable[[Rounds], Figures] = lambda rounds: {},
) -> None:
    """Measure, print and write benchmarks/results/<script>.json.

    Args:
        script: `__file__` of the benchmark; document: its docstring.
        sides: ours first, the others after it; the same options in every process.
        select: writes the measured rows to a file, "rows.jsonl" where a side runs; tells of them.
        data: default of --data; numbers: further options with their defaults.
        settings: kept with the results.
        summarise: what the figures of all rounds say beside costs.
    """
    parser = argparse.ArgumentParser(description=document.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(data))
    parser.add_argument("--model", type=Path, default=Path("models/SmolLM2-135M-Instruct"))
    for name, default in {"rounds": 3, "threads": 1, **numbers}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--side", choices=list(sides), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.data, options.model = options.data.resolve(), options.model.resolve()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps(sides[options.side](options)))
        return
    rounds: Rounds = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        rows = select(options, Path(folder) / "rows.jsonl")
        for number in range(options.rounds):
            for side in list(sides)[:: 1 if number % 2 == 0 else -1]:
                rounds[side].append(_run(script, side, options, Path(folder)))
                print(number + 1, side, rounds[side][-1], flush=True)
    given = {name: value for name, value in vars(options).items() if name != "side"}
    head = given | {"data": options.data.name, "model": options.model.name} | dict(settings)
    _write(script, head | {"selected": rows}, rounds, summarise)


def _run(script: str, side: str, options: argparse.Namespace, folder: Path) -> Figures:
    """The last line that a process of its own prints; it finds nothing that another one left."""
    command = [sys.executable, str(Path(script).resolve()), "--side", side]
    for name, value in vars(options).items():
        if name != "side":
            command += [f"--{name.replace('_', '-')}", str(value)]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            "OMP_NUM_THREADS": str(options.threads),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": place,
        }
        (Path(place) / "rows.jsonl").symlink_to(folder / "rows.jsonl")
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _write(
    script: str, head: Figures, rounds: Rounds, summarise: Callable[[Rounds], Figures]
) -> None:
    """Print the comparison and keep everything that it was made from."""
    medians = {
        side: {cost: statistics.median(run[cost] for run in runs) for cost in COSTS}
        for side, runs in rounds.items()
    }
    ours, *others = medians
    result = head | {
        "medians": medians,
        "over_ours": {
            side: {cost: medians[side][cost] / medians[ours][cost] for cost in COSTS}
            for side in others
        },
        **summarise(rounds),
        "rounds": rounds,
    }
    keep(script, result, PACKAGES)
