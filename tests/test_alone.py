"""Two runs in one folder: the second is refused, or the first one was waiting and is ended."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from holder import held
from tiny_task import TinyTask, make_rows, same

from main.errors import InUseError

OPTIONS: dict[str, Any] = {"num_epochs": 2, "save_strategy": "epoch"}


def start(folder: Path, **changes: Any) -> tuple[TinyTask, Any]:
    task = TinyTask(make_rows(6))
    return task, task.start(folder, **(OPTIONS | changes))


def test_a_run_of_another_process_is_named_and_one_that_was_killed_is_in_nobodys_way(tmp_path):
    """The kill leaves both locks; the resume is bit-equal all the same."""
    whole, generator = start(tmp_path / "whole")
    list(generator)
    _, generator = start(tmp_path)
    next(generator)
    generator.close()
    records, saves = (tmp_path / f"{kind}/tiny/.lock" for kind in ("data_record", "save_model"))
    with held(records) as one, held(saves) as two:
        said = rf"data_record/tiny is in use by another program \(process {one.pid} on .*, since 20"
        for changes in ({}, {"resume_from_checkpoint": "auto"}, {"save_strategy": "no"}):
            with pytest.raises(InUseError, match=said):
                next(start(tmp_path, **changes)[1])
        one.kill()
        one.wait()
        with pytest.raises(InUseError, match=rf"save_model/tiny is in use .*process {two.pid} on "):
            next(start(tmp_path)[1])
    assert saves.is_file()
    resumed, generator = start(tmp_path, resume_from_checkpoint="auto")
    (result,) = generator
    assert result.epoch == 2 and same(resumed, whole)
    assert not list(tmp_path.rglob(".lock"))


def test_a_run_of_this_process_that_waits_is_ended_and_taken_over(tmp_path, caplog):
    whole, generator = start(tmp_path / "whole")
    list(generator)
    _, first = start(tmp_path)
    next(first)
    resumed, second = start(tmp_path, resume_from_checkpoint="auto")
    (result,) = second
    assert result.epoch == 2 and same(resumed, whole)
    assert "is ended: another begins" in caplog.text
    with pytest.raises(StopIteration):
        next(first)
    assert not list(tmp_path.rglob(".lock"))


def test_a_run_at_work_in_another_thread_is_not_touched(tmp_path):
    at_work, go_on = threading.Event(), threading.Event()

    class Slow(TinyTask):
        def collate(self, rows):
            at_work.set()
            assert go_on.wait(60)
            return super().collate(rows)

    slow = Slow(make_rows(6)).start(tmp_path, **OPTIONS)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(slow))
    thread.start()
    assert at_work.wait(60)
    try:
        with pytest.raises(InUseError, match=f"process {os.getpid()} on "):
            next(start(tmp_path)[1])
    finally:
        go_on.set()
        thread.join()
    assert len(results) == 2


def test_the_spelling_of_a_path_hides_no_run_and_other_tasks_go_on(tmp_path):
    _, first = start(tmp_path)
    next(first)
    (tmp_path / "link").symlink_to(tmp_path)
    _, second = start(tmp_path / "link")
    next(second)  # the first is ended
    with pytest.raises(StopIteration):
        next(first)
    _, third = start(tmp_path / "another")
    next(third)
    assert next(second).epoch == 2
