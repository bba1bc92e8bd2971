"""Any file operation may fail, or be the last: an error of ours, and the same call completes."""

import errno
import logging
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from disk_work import Work, Works
from failing_disk import KILL, Disk, Made, listening

from main.errors import DiskError

NAMES = ["a training run", "batch inference", "the row cache", "the reference cache", "merging"]
# What starts no threads of its own: a forked child would wait for them for ever.
IN_CHILDREN = ["batch inference"]
GOES_ON, TOLD, KILLED = "the run goes on", "told, completed by the same call", "killed, completed"
LIMITED = "a file of limited size: told, completed"
_TOLD = 3  # what a child ends with


@pytest.fixture(scope="module")
def works(small_model_path, tmp_path_factory) -> dict[str, Work]:
    found = Works(small_model_path, tmp_path_factory.mktemp("shared")).all()
    assert list(found) == NAMES
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
@pytest.mark.parametrize("name", IN_CHILDREN)
def test_a_kill_at_each_distinct_place_loses_nothing(name, works, tmp_path, monkeypatch):
    """In a forked child, once for each operation of each line of ours."""
    work, outcomes = works[name], Counter[tuple[str, str]]()
    made, undisturbed = made_by(work, tmp_path / "whole", monkeypatch)
    for place in dict.fromkeys(made):
        folder = tmp_path / str(made.index(place))
        folder.mkdir()
        assert in_child(partial(killed, work, folder, made.index(place))) == -signal.SIGKILL, place
        assert work(folder) == undisturbed, place
        check_leftovers(folder, str(place))
        outcomes[place.operation, KILLED] += 1
    show(name, outcomes)
    assert sum(outcomes.values()) > 3


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no limits")
@pytest.mark.parametrize("name", IN_CHILDREN)
def test_a_write_that_is_cut_short_is_told(name, works, tmp_path, monkeypatch):
    """By the system itself, whatever language writes: files may be of so many bytes and no more."""
    work, outcomes = works[name], Counter[tuple[str, str]]()
    _, undisturbed = made_by(work, tmp_path / "whole", monkeypatch)
    sizes = sorted({p.stat().st_size for p in (tmp_path / "whole").rglob("*") if p.is_file()})
    for size in sorted({0, 1, *(max(0, size - 1) for size in sizes)}):
        folder = tmp_path / str(size)
        folder.mkdir()
        ended = in_child(partial(limited, work, folder, size))
        assert ended in (0, _TOLD), size
        assert work(folder) == undisturbed, size
        outcomes["write", LIMITED if ended == _TOLD else GOES_ON] += 1
    show(name, outcomes)
    assert outcomes["write", LIMITED] > 0


def killed(work: Work, folder: Path, allowed: int) -> None:
    disk = Disk(pytest.MonkeyPatch(), KILL)
    disk.left = allowed
    work(folder)


def limited(work: Work, folder: Path, size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    work(folder)


def in_child(work: Callable[[], Any]) -> int:
    """What a forked child ends with: 0, `_TOLD` where a `DiskError` was raised, - its signal."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except DiskError:
            code = _TOLD
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
