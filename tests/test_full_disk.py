"""A disk that fills up at any moment of a save: an error, and every earlier checkpoint intact."""

import builtins
import contextlib
import errno
import io
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import TinyTask, make_rows

from main.errors import CheckpointError
from main.trainer import checkpoint, loop
from main.utils.folders import write_directory

OPTIONS = {"num_epochs": 2, "save_strategy": "epoch", "save_total_limit": 1, "dropout": 0.2}
OPERATIONS = ["mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync"]


class Disk:
    """Counts the file operations that Python makes, and lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.left: int | None = None  # operations that still succeed; None: all
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name != "open"))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._counted(open, False))

    def _counted(self, real: Callable, always: bool) -> Callable:
        def operation(*args, **kwargs):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            writes = always or (isinstance(mode, str) and set(mode) & set("wax"))
            if self.left is not None and writes:
                self.left -= 1
                if self.left < 0:
                    self.left = None
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return real(*args, **kwargs)

        return operation


def run(folder: Path, **changes):
    options = OPTIONS | changes
    task = TinyTask(make_rows(6), dropout=options.pop("dropout"))
    return task, task.run(folder, **options)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    task, generator = run(tmp_path_factory.mktemp("whole"))
    list(generator)
    return task.adapter()


def assert_nothing_is_lost(folder: Path, undisturbed: dict[str, torch.Tensor]) -> None:
    """'auto' finds a complete checkpoint, cleans up, and ends where an undisturbed run ends."""
    checkpoints = folder / "save_model" / "tiny"
    assert checkpoint.complete(checkpoints)
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
            patch.setattr(loop, "write_directory", save)
            try:
                next(generator)
            except CheckpointError as error:
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
            patch.setattr(loop, "write_directory", save)
            with pytest.raises(CheckpointError, match="could not be written"):
                next(generator)
        assert [path.name for path in (folder / "save_model/tiny").iterdir()] == ["Llama_2"]
        assert_nothing_is_lost(folder, undisturbed)


def test_any_file_operation_of_a_replacement_may_fail(tmp_path, monkeypatch):
    disk, final = Disk(monkeypatch), tmp_path / "out"

    def fill(folder: Path) -> None:
        (folder / "a").write_text("new")
        (folder / "b").write_text("new")

    for allowed in range(100):
        final.mkdir(exist_ok=True)
        for name in "ab":
            (final / name).write_text("old")
        disk.left = allowed
        with contextlib.suppress(CheckpointError):
            write_directory(final, fill)
        failed, disk.left = disk.left is None, None
        assert len({(final / name).read_text() for name in "ab"}) == 1  # all old or all new
        checkpoint.recover(tmp_path)
        assert list(tmp_path.iterdir()) == [final]
        if not failed:
            break
    assert allowed > 10
