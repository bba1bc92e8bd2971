"""Any file operation may fail, or be the last: an error of ours, and the same call completes."""

import errno
import itertools
import logging
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from disk_work import RAG, ROOT, Work, make_shared, works_in
from failing_disk import Disk, Made, listening
from launchers import environment
from run_results import results

from main.errors import DiskError

NAMES = ["a training run", "batch inference", "the row cache", "the reference cache", "merging"]
GOES_ON, TOLD = "the run goes on", "told, completed by the same call"


@pytest.fixture(scope="module")
def shared(small_model_path, encoder_path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    make_shared(small_model_path, folder)
    return folder


@pytest.fixture(scope="module")
def works(shared) -> dict[str, Work]:
    found = works_in(shared)
    assert list(found) == [*NAMES, RAG]
    return found


def made_by(work: Work, folder: Path, monkeypatch) -> tuple[list[Made], Any]:
    """The operations of an undisturbed call, and what it gives.

    An operation that Python reports and the disk does not count could never fail here.
    """
    folder.mkdir()
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        with listening() as heard:
            given = work(folder)
        assert disk.reported() == heard
    return disk.made, given


def with_faults(
    work: Work, tmp_path: Path, monkeypatch, number: int, every: int = 1
) -> Counter[tuple[str, str]]:
    """What became of the calls in which one operation fails: (operation, outcome) -> how often."""
    outcomes = Counter[tuple[str, str]]()
    made, undisturbed = made_by(work, tmp_path / "whole", monkeypatch)
    for allowed in range(0, len(made), every):
        folder, outcome = tmp_path / str(allowed), GOES_ON
        folder.mkdir()
        with monkeypatch.context() as patch:
            disk = Disk(patch, number)
            disk.left = allowed
            try:
                work(folder)
            except DiskError as error:
                assert os.strerror(number) in str(error)
                outcome = TOLD
        assert work(folder) == undisturbed, (disk.failed, "the same call again")
        check_leftovers(folder, disk.failed)
        outcomes[disk.failed.partition(" ")[0], outcome] += 1
    return outcomes


def check_leftovers(folder: Path, failed: str) -> None:
    """Of a training run: its checkpoints and records, nothing half-written."""
    if (folder / "save_model").is_dir():
        assert names(folder / "save_model/tiny") <= {"Llama_2", "Llama_4"}, failed
        # Beside the records stand those of a first attempt that has left no checkpoint.
        suffixes = {Path(name).suffix for name in names(folder / "data_record/tiny")}
        assert suffixes == {".csv"}, failed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def show(name: str, outcomes: Counter) -> None:
    for (operation, outcome), count in sorted(outcomes.items()):
        print(f"{name:20} {operation:8} {count:4}  {outcome}")


@pytest.mark.parametrize("name", NAMES)
def test_some_operations_fail_and_nothing_is_lost(name, works, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    every = 31 if name == "a training run" else 5
    outcomes = with_faults(works[name], tmp_path, monkeypatch, errno.ENOSPC, every)
    show(name, outcomes)
    assert sum(outcomes.values()) > 1


@pytest.mark.long
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_fails_and_nothing_is_lost(
    name, number, works, tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.ERROR)
    outcomes = with_faults(works[name], tmp_path, monkeypatch, number)
    show(name, outcomes)
    assert sum(outcomes.values()) > (90 if name == "a training run" else 4)


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize(
    ("name", "what"),
    [*itertools.product(NAMES, ["kill", "limit"]), (RAG, "limit")],  # written by chromadb alone
)
def test_kills_and_writes_that_are_cut_short_lose_nothing(name, what, shared, tmp_path):
    """For real, in forked children: a kill at each operation of each line of ours, and files that
    may be of so many bytes and no more."""
    command = [sys.executable, str(ROOT / "tests/disk_children.py"), what, name]
    done = subprocess.run(
        [*command, str(shared), str(tmp_path / "given")],
        env=environment() | {"TOKENIZERS_PARALLELISM": "false"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (outcomes,) = results(done.stdout)
    print(f"{name:30} {outcomes}")
    assert sum(outcomes.values()) > 2
    assert what == "kill" or any("told" in outcome for outcome in outcomes)
