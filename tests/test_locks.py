"""Who holds a lock keeps it for as long as it lives, and not longer."""

import dataclasses
import errno
import fcntl
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from holder import held

from main.errors import DiskError, InUseError
from main.system import locks
from main.system.locks import Owner, beside, holding, in_turn, take


def write(path: Path, **changes: Any) -> None:
    """The lock of an owner like this process, with changes."""
    owner = dataclasses.replace(Owner.here("somebody"), **changes)
    path.write_text(json.dumps(dataclasses.asdict(owner)), encoding="utf-8")


def test_a_living_holder_is_named_with_its_process_and_since_when(tmp_path):
    lock = tmp_path / "run" / ".lock"
    with held(lock) as other:
        said = rf"run is in use by another program \(process {other.pid} on .*, since 20\d\d-"
        with pytest.raises(InUseError, match=said) as caught:
            take(lock, "mine")
        assert not caught.value.elsewhere
    with pytest.raises(InUseError), holding(lock, "mine"):
        take(lock, "mine again")
    assert list(lock.parent.iterdir()) == []


def test_a_killed_holders_lock_is_taken_over_and_said(tmp_path, caplog):
    lock = tmp_path / ".lock"
    with held(lock) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
        assert lock.is_file()
        take(lock, "mine").release()
    assert f"process {other.pid}" in caplog.text and "taken over" in caplog.text


GONE: dict[str, dict[str, Any]] = {
    "the number of another process": {"process": 1},
    "a number that came again": {"began": "17"},
    "before the host was started": {"boot": "another"},
    "a container that is gone": {"space": "pid:[1]"},
}


@pytest.mark.parametrize("why", GONE)
def test_who_is_gone_holds_nothing(tmp_path, why):
    write(tmp_path / ".lock", **GONE[why])
    take(tmp_path / ".lock", "mine").release()


def test_another_host_is_never_called_dead(tmp_path):
    write(tmp_path / ".lock", host="node-17", process=1, boot="another")
    with pytest.raises(InUseError, match=r"on node-17.*If it is gone, delete .*\.lock") as caught:
        take(tmp_path / ".lock", "mine")
    assert caught.value.elsewhere
    with in_turn(tmp_path / ".lock", "mine"):  # not waited for
        pass
    assert "node-17" in (tmp_path / ".lock").read_text(encoding="utf-8")


def test_who_is_dead_and_not_yet_buried_holds_nothing(tmp_path):
    """As in a container whose first process collects no children."""
    with held(tmp_path / ".lock") as other:
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        take(tmp_path / ".lock", "mine").release()


def test_a_half_written_lock_is_nobodys(tmp_path):
    for text in ("", '{"what": "a r', "[]"):
        (tmp_path / ".lock").write_text(text, encoding="utf-8")
        take(tmp_path / ".lock", "mine").release()


def test_a_container_beside_is_alive_as_the_kernel_says(tmp_path, monkeypatch):
    """Its process numbers mean nothing here."""
    lock = tmp_path / ".lock"
    with held(lock):
        monkeypatch.setattr(locks, "_space", lambda: "pid:[2]")
        with pytest.raises(InUseError):
            take(lock, "mine")
    take(lock, "mine").release()


def test_on_a_disk_without_locks_the_process_numbers_decide(tmp_path, monkeypatch):
    def lockf(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    lock = tmp_path / ".lock"
    with held(lock) as other:
        monkeypatch.setattr(fcntl, "lockf", lockf)
        with pytest.raises(InUseError):
            take(lock, "mine")
        other.kill()
        other.wait()
        take(lock, "mine").release()
    write(lock, space="pid:[1]")  # nobody can know
    with pytest.raises(InUseError):
        take(lock, "mine")


def test_a_turn_comes_when_the_holder_is_done(tmp_path, caplog):
    target = tmp_path / "file"
    with held(beside(target), seconds=1.0):
        began = time.monotonic()
        with in_turn(beside(target), "mine"):
            assert time.monotonic() - began > 0.3
    assert "waiting: " in caplog.text and "in use by another program" in caplog.text


def test_of_many_threads_one_is_inside(tmp_path):
    inside, most = [], []

    def work() -> None:
        with in_turn(tmp_path / ".lock", "a thread"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 4


def test_a_forked_child_neither_holds_nor_releases(tmp_path):
    lock = take(tmp_path / ".lock", "the parent")
    child = os.fork()
    if child == 0:
        lock.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert lock.path.is_file()
    lock.release()
    assert not lock.path.exists()


def test_a_lock_that_cannot_be_written_says_why(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="file' is a file where a folder is needed"):
        take(tmp_path / "file" / "run" / ".lock", "mine")

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskError, match="the disk is full"):
        take(tmp_path / "run" / ".lock", "mine")
    assert list((tmp_path / "run").iterdir()) == []
