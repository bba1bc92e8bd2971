"""A file under its name is whole, whatever interrupts its writing."""

import errno
import os
from pathlib import Path

import pytest

from main.errors import DiskError
from main.system.disk import appearing, disk_error, told
from main.system.folders import write_directory


def test_a_file_takes_its_name_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with appearing(target) as new:
        new.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(RuntimeError), appearing(target) as new:
        new.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_others_may_read_the_file_as_far_as_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with appearing(tmp_path / "file") as new:
            new.write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


CAUSES = {
    errno.ENOSPC: "the disk is full .*Free some space",
    errno.EROFS: "the disk is read-only .*Choose a folder that can be written",
    errno.EACCES: "you may not write there .*Choose another folder",
    errno.EIO: "the disk reports a fault .*Look at the disk",
    errno.EMFILE: "too many files are open .*ulimit -n",
}


@pytest.mark.parametrize("number", CAUSES)
def test_what_a_disk_refuses_is_told_by_its_true_cause(tmp_path: Path, number: int) -> None:
    said = rf"file could not be written: {CAUSES[number]}"
    with pytest.raises(DiskError, match=said), appearing(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


def test_writers_in_other_languages_have_their_cause_in_the_text(tmp_path: Path) -> None:
    for text in ("I/O error: No space left on device (os error 28)", "No space left on device"):
        assert "the disk is full" in str(disk_error(tmp_path / "a", RuntimeError(text)))
    assert "its writer failed" in str(disk_error(tmp_path / "a", RuntimeError("unexpected pos")))


def test_a_file_where_a_folder_is_needed_is_named(tmp_path: Path) -> None:
    (tmp_path / "in_the_way").write_text("x")
    with pytest.raises(DiskError, match="in_the_way' is a file where a folder is needed"):
        write_directory(tmp_path / "in_the_way" / "out", lambda folder: None)


def test_an_error_about_a_file_elsewhere_is_not_the_targets(tmp_path: Path) -> None:
    target = tmp_path / "own" / "file"
    target.parent.mkdir()
    with pytest.raises(FileNotFoundError) as caught, appearing(target):
        (tmp_path / "image.png").read_bytes()
    assert not isinstance(caught.value, DiskError)
    with pytest.raises(DiskError) as refused, told(target, "deleted"):
        raise PermissionError(errno.EACCES, "Permission denied", "weights")  # as shutil.rmtree does
    assert "own/file could not be deleted: you may not write there" in str(refused.value)
    with pytest.raises(ConnectionError), appearing(target):
        raise ConnectionError(errno.ECONNREFUSED, "refused")
