"""Any file operation of a run may fail: an error of ours, and the same call again completes."""

import errno
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_disk import Disk
from tiny_task import TinyTask, make_rows

from main.errors import DiskError
from main.trainer.loop.throughput import MEASURED

OPTIONS: dict[str, Any] = {
    "num_epochs": 2, "save_strategy": "epoch", "save_total_limit": 1, "logging_steps": 1,
    "resume_from_checkpoint": "auto",
}  # fmt: skip


def train(folder: Path) -> dict[str, torch.Tensor]:
    task = TinyTask(make_rows(6), make_rows(2, 1), dropout=0.2)
    list(task.start(folder, **OPTIONS))
    return task.adapter()


def records(folder: Path) -> dict[str, list[list[str]]]:
    """But for what the machine did."""
    found = {}
    for kind in ("train", "eval"):
        text = (folder / f"data_record/tiny/{kind}.csv").read_text(encoding="utf-8")
        lines = [line.split(",") for line in text.splitlines()]
        kept = [i for i, name in enumerate(lines[0]) if name not in MEASURED]
        found[kind] = [[line[i] for i in kept] for line in lines]
    return found


def with_faults(tmp_path: Path, monkeypatch, number: int, every: int) -> Counter:
    """What became of the runs in which one operation fails: (operation, outcome) -> how often."""
    undisturbed, outcomes = train(tmp_path / "whole"), Counter[tuple[str, str]]()
    for allowed in range(0, 1000, every):
        folder, outcome = tmp_path / str(allowed), "the run goes on"
        with monkeypatch.context() as patch:
            disk = Disk(patch, number)
            disk.left = allowed
            try:
                train(folder)
            except DiskError as error:
                assert os_text(number) in str(error)
                outcome = "told, completed by the same call"
        if disk.left is not None:
            return outcomes  # a whole run makes fewer operations
        for name, value in train(folder).items():  # the same call again
            assert torch.equal(value, undisturbed[name]), (disk.failed, name)
        assert records(folder) == records(tmp_path / "whole"), disk.failed
        assert names(folder / "save_model/tiny") <= {"Llama_2", "Llama_4"}, disk.failed
        # Beside the records stand those of a first attempt that has left no checkpoint.
        suffixes = {Path(name).suffix for name in names(folder / "data_record/tiny")}
        assert suffixes == {".csv"}, disk.failed
        outcomes[disk.failed.partition(" ")[0], outcome] += 1
    raise AssertionError("a run that never ends")


def os_text(number: int) -> str:
    return {errno.ENOSPC: "No space left on device", errno.EIO: "Input/output error"}[number]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def show(outcomes: Counter) -> None:
    for (operation, outcome), count in sorted(outcomes.items()):
        print(f"{operation:8} {count:4}  {outcome}")


def test_some_operations_of_a_run_fail_and_nothing_is_lost(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    outcomes = with_faults(tmp_path, monkeypatch, errno.ENOSPC, every=17)
    show(outcomes)
    assert sum(outcomes.values()) > 5


@pytest.mark.long
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_every_operation_of_a_run_fails_and_nothing_is_lost(tmp_path, monkeypatch, number, caplog):
    caplog.set_level(logging.ERROR)
    outcomes = with_faults(tmp_path, monkeypatch, number, every=1)
    show(outcomes)
    assert sum(outcomes.values()) > 90
