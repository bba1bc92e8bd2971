"""A folder is written whole or not at all."""

from pathlib import Path

import pytest

from main.errors import DiskError, ModelError
from main.system.folders import write_directory


def fill(text: str, then: Exception | None = None):
    def write(folder: Path) -> None:
        (folder / "weights").write_text(text)
        if then is not None:
            raise then

    return write


def names(root: Path) -> list[str]:
    return [path.name for path in root.iterdir()]


def test_a_folder_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    write_directory(tmp_path / "out", fill("first"))
    write_directory(tmp_path / "out", fill("second"))
    assert (tmp_path / "out" / "weights").read_text() == "second"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(28, "No space left on device"), (DiskError, "out could not.*space left")),
        (ModelError("it differs"), (ModelError, "^it differs$")),
    ],
)  # fmt: skip
def test_a_failed_write_leaves_what_stood_there(tmp_path, raised, expected):
    write_directory(tmp_path / "out", fill("first"))
    with pytest.raises(expected[0], match=expected[1]):
        write_directory(tmp_path / "out", fill("half", raised))
    assert (tmp_path / "out" / "weights").read_text() == "first"
    assert names(tmp_path) == ["out"]
