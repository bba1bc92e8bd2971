"""A disk that fills up at any moment of a save: an error, and every earlier checkpoint intact."""

import contextlib
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from failing_disk import Disk
from tiny_task import TinyTask, make_rows

from main.errors import DiskError
from main.system.folders import write_directory
from main.trainer.loop import checkpoints as saver
from main.trainer.loop import saving
from main.trainer.loop.home import Home

OPTIONS: dict[str, Any] = {
    "num_epochs": 2, "save_strategy": "epoch", "save_total_limit": 1, "dropout": 0.2,
}  # fmt: skip


def run(folder: Path, **changes):
    options = OPTIONS | changes
    task = TinyTask(make_rows(6), dropout=options.pop("dropout"))
    return task, task.start(folder, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    task, generator = run(tmp_path_factory.mktemp("whole"))
    list(generator)
    return task.adapter()


def assert_nothing_is_lost(folder: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    """'auto' finds a complete checkpoint, cleans up, and ends where an undisturbed run ends."""
    checkpoints = folder / "save_model" / "tiny"
    assert saving.candidates(Home(folder, "tiny", "Llama", 7))
    task, generator = run(folder, resume_from_checkpoint="auto")
    list(generator)
    for name, value in task.adapter().items():
        assert torch.equal(value, undisturbed[name]), name
    # The older one may be left where the rotation itself failed, but nothing half-written.
    assert {"Llama_4"} <= {path.name for path in checkpoints.iterdir()} <= {"Llama_2", "Llama_4"}


def test_any_file_operation_of_a_save_may_fail(tmp_path, monkeypatch, undisturbed):
    disk, errors = Disk(monkeypatch), 0
    for allowed in range(1000):
        _, generator = run(tmp_path / str(allowed))
        next(generator)

        def save(*args, allowed=allowed):
            disk.left = allowed
            write_directory(*args)

        with monkeypatch.context() as patch:
            patch.setattr(saver, "write_directory", save)
            try:
                next(generator)
            except DiskError as error:
                assert "No space left on device" in str(error)
                errors += 1
        generator.close()
        failed, disk.left = disk.left is None, None
        assert_nothing_is_lost(tmp_path / str(allowed), undisturbed)
        if not failed:
            break  # a whole save makes fewer operations
    assert errors > 10


def test_any_file_of_a_checkpoint_may_meet_the_end_of_the_disk(tmp_path, monkeypatch, undisturbed):
    """With the system's own limit on the size of files, which holds for writers in C++ and Rust."""
    _, generator = run(tmp_path / "sizes")
    sizes = {p.stat().st_size for p in next(generator).checkpoint.rglob("*") if p.is_file()}
    generator.close()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert len(sizes) > 4
    for size in sorted(sizes):
        folder = tmp_path / str(size)
        _, generator = run(folder)
        next(generator)

        def save(*args, most=size - 1):
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
            try:
                write_directory(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)

        with monkeypatch.context() as patch:
            patch.setattr(saver, "write_directory", save)
            with pytest.raises(DiskError, match="could not be written"):
                next(generator)
        assert [path.name for path in (folder / "save_model/tiny").iterdir()] == ["Llama_2"]
        assert_nothing_is_lost(folder, undisturbed)


def test_any_file_operation_of_a_replacement_may_fail(tmp_path, monkeypatch):
    disk, final = Disk(monkeypatch), tmp_path / "out_1"

    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")

    for allowed in range(100):
        final.mkdir(exist_ok=True)
        for name in "ab":
            (final / name).write_text("old")
        disk.left = allowed
        with contextlib.suppress(DiskError):
            write_directory(final, fill)
        failed, disk.left = disk.left is None, None
        assert len({(final / name).read_text() for name in "ab"}) == 1  # all old or all new
        saving.recover(tmp_path, ["out"])
        assert list(tmp_path.iterdir()) == [final]
        if not failed:
            break
    assert allowed > 10
