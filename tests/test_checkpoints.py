"""'auto' and rotation in a folder that others use too; records that a crash has damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import TinyTask, make_rows, same

from main.errors import CheckpointError
from main.trainer.loop.throughput import MEASURED

OPTIONS: dict[str, Any] = {"num_epochs": 3, "save_strategy": "epoch", "logging_steps": 1}


def task() -> TinyTask:
    return TinyTask(make_rows(6), batch_size=2, dropout=0.2)


def train(folder: Path, **changes) -> tuple[TinyTask, list]:
    made = task()
    return made, list(made.start(folder, **(OPTIONS | changes)))


def checkpoints(folder: Path) -> set[str]:
    return {path.name for path in (folder / "save_model/tiny").iterdir()}


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda state: (state / "weights.pt").write_bytes(
        (state / "weights.pt").read_bytes()[:100]
    ),
    "emptied": lambda state: (state / "optimizer.pt").write_bytes(b""),
    "zeros": lambda state: (state / "optimizer.pt").write_bytes(bytes(4000)),
    "gone": lambda state: (state / "rng_0.pt").unlink(),
    "no json": lambda state: (state / "progress.json").write_text("{"),
    "other json": lambda state: (state / "progress.json").write_text("[1, 2]"),
    "no progress": lambda state: (state / "progress.json").unlink(),
    "nothing": shutil.rmtree,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_auto_passes_over_a_damaged_checkpoint_says_so_and_goes_on_from_an_older_one(
    tmp_path, caplog, kind
):
    whole, _ = train(tmp_path / "whole")
    train(tmp_path / "part")
    DAMAGE[kind](tmp_path / "part/save_model/tiny/Llama_9/trainer_state")
    resumed, results = train(tmp_path / "part", resume_from_checkpoint="auto")
    assert [result.epoch for result in results] == [3]
    assert same(resumed, whole)
    assert "Llama_9 is passed over: " in caplog.text


def test_a_damaged_checkpoint_that_is_named_is_refused(tmp_path):
    train(tmp_path)
    folder = tmp_path / "save_model/tiny/Llama_9"
    DAMAGE["cut"](folder / "trainer_state")
    with pytest.raises(CheckpointError, match=r"weights\.pt cannot be read"):
        train(tmp_path, resume_from_checkpoint=folder)


def test_what_is_not_ours_stays_and_stops_nothing(tmp_path):
    first = task().start(tmp_path, **OPTIONS, save_total_limit=1)
    next(first)
    first.close()
    root, elsewhere = tmp_path / "save_model/tiny", tmp_path / "elsewhere"
    shutil.copytree(root / "Llama_3", root / "best_model_backup")
    shutil.copytree(root / "Llama_3", root / "Llama_99")
    shutil.copytree(root / "Llama_3", elsewhere)
    (root / "Llama_1").symlink_to(elsewhere)
    (root / "Qwen_4").mkdir()
    (root / ".mine.tmp").mkdir()
    (root / "Llama_notes").write_text("a file")
    foreign = checkpoints(tmp_path) - {"Llama_3"}
    whole, _ = train(tmp_path / "whole")
    resumed, _ = train(tmp_path, resume_from_checkpoint="auto", save_total_limit=1)
    assert same(resumed, whole)
    assert checkpoints(tmp_path) == foreign | {"Llama_9"}
    assert (elsewhere / "trainer_state/weights.pt").is_file()


@pytest.mark.parametrize("broken", [False, True])
def test_a_link_is_neither_gone_on_from_nor_followed_where_it_is_in_the_way(
    tmp_path, caplog, broken
):
    first = task().start(tmp_path, **OPTIONS)
    next(first)
    first.close()
    root, elsewhere = tmp_path / "save_model/tiny", tmp_path / "elsewhere"
    shutil.move(root / "Llama_3", elsewhere)
    (root / "Llama_3").symlink_to(tmp_path / "gone" if broken else elsewhere)
    _, results = train(tmp_path, resume_from_checkpoint="auto", save_total_limit=2)
    assert [result.epoch for result in results] == [1, 2, 3] and "starting afresh" in caplog.text
    assert checkpoints(tmp_path) == {"Llama_6", "Llama_9"}
    assert (elsewhere / "trainer_state/weights.pt").is_file()


def test_rotation_goes_by_step_whatever_the_clock_and_the_files_say(tmp_path):
    run = task().start(tmp_path, **OPTIONS, save_total_limit=2)
    for _ in range(2):
        next(run)
    import os

    os.utime(tmp_path / "save_model/tiny/Llama_3", (2e9, 2e9))
    next(run)
    run.close()
    assert checkpoints(tmp_path) == {"Llama_6", "Llama_9"}


def test_auto_goes_on_with_the_latest_run_though_an_earlier_one_went_further(tmp_path):
    train(tmp_path)
    again = task().start(tmp_path, **OPTIONS)
    next(again)
    again.close()
    _, results = train(tmp_path, resume_from_checkpoint="auto")
    assert [result.epoch for result in results] == [2, 3]


@pytest.mark.parametrize("end", [b"\0" * 512, b"7,2.3", b"7,2.3,0.4", b"\xff\xfe\n", b"9,x\n"])
def test_a_record_is_mended_at_its_end_and_never_stops_a_resume(tmp_path, caplog, end):
    whole = tmp_path / "whole"
    train(whole)
    run = task().start(tmp_path / "part", **OPTIONS)
    for _ in range(2):
        next(run)
    run.close()
    record = tmp_path / "part/data_record/tiny/train.csv"
    record.write_bytes(record.read_bytes() + end)
    train(tmp_path / "part", resume_from_checkpoint="auto")
    assert "was damaged" in caplog.text

    def rows(path: Path) -> list[list[str]]:  # but for what the machine did
        lines = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [i for i, name in enumerate(lines[0]) if name not in MEASURED]
        return [[line[i] for i in kept] for line in lines]

    assert rows(record) == rows(whole / "data_record/tiny/train.csv")


def test_a_record_without_a_step_is_set_aside(tmp_path):
    run = task().start(tmp_path, **OPTIONS)
    next(run)
    run.close()
    folder = tmp_path / "data_record/tiny"
    (folder / "train.csv").write_bytes(bytes(100))
    train(tmp_path, resume_from_checkpoint="auto")
    assert len(list(folder.glob("train*.csv"))) == 2
    assert (folder / "train.csv").read_text(encoding="utf-8").startswith("step,epoch")


def test_a_checkpoint_of_another_version_is_refused_by_what_it_lacks(tmp_path):
    train(tmp_path)
    path = tmp_path / "save_model/tiny/Llama_9/trainer_state/progress.json"
    progress = json.loads(path.read_text(encoding="utf-8"))
    del progress["best_saved"]
    path.write_text(json.dumps(progress), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"does not say \['best_saved'\]"):
        train(tmp_path, resume_from_checkpoint=path.parent.parent)


def test_tensorboard_has_one_run_directory_and_the_settings_in_it(tmp_path):
    train(tmp_path, report_to=["tensorboard"])
    folder = tmp_path / "logs/tensorboard_logs/tiny"
    (events,) = folder.rglob("*tfevents*")
    assert events.parent == folder
    assert b"lr_scheduler_type" in events.read_bytes()


def test_memory_that_does_not_suffice_to_evaluate_halves_the_evaluation_and_no_more(
    tmp_path, caplog
):
    class Small(TinyTask):
        def evaluate(self, rows, device):
            if len(rows) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().evaluate(rows, device)

    roomy, small = (kind(make_rows(8), make_rows(7, 1), batch_size=8) for kind in (TinyTask, Small))
    expected = list(roomy.start(tmp_path / "a", num_epochs=2))
    results = list(small.start(tmp_path / "b", num_epochs=2))
    for ours, theirs in zip(results, expected, strict=True):
        assert ours.eval["loss"] == pytest.approx(theirs.eval["loss"], rel=1e-5)
        assert ours.train["loss"] == theirs.train["loss"]
    assert "out of memory: evaluation batches of at most 2 rows" in caplog.text
    assert (small.batch_size, small.batch_size_eval) == (8, 8)
