"""Files that grow by rows: mended at their end, cut back to where a resumed run goes on."""

from pathlib import Path

import pytest

from main.trainer.loop.row_files import CsvLog, JsonLog

ROWS = [{"step": 2, "warning": "first, 第一"}, {"step": 5, "warning": "second"}]


def written(path: Path) -> bytes:
    log = JsonLog(path, None)
    for row in ROWS:
        log.append(row)
    log.flush()
    return path.read_bytes()


@pytest.mark.parametrize("end", [b"", b"\0" * 512, b'{"step": 7, "warn', b"\xff\xfe\n", b"[1]\n"])
def test_a_resume_mends_the_end_and_keeps_rows_up_to_its_step(tmp_path, end, caplog):
    path = tmp_path / "warnings.jsonl"
    first, second = written(path).splitlines(keepends=True)
    path.write_bytes(first + second + end)
    log = JsonLog(path, 5)
    assert path.read_bytes() == first + second and ("was damaged" in caplog.text) == bool(end)
    JsonLog(path, 4)
    assert path.read_bytes() == first
    log.append(ROWS[1])
    assert path.read_bytes() == first + second


def test_a_file_without_rows_that_stay_vanishes_and_another_run_s_is_set_aside(tmp_path):
    path = tmp_path / "warnings.jsonl"
    written(path)
    JsonLog(path, 1)
    assert list(tmp_path.iterdir()) == []
    written(path)
    JsonLog(path, None).append(ROWS[0])
    assert len(path.read_text("utf-8").splitlines()) == 1 and len(list(tmp_path.iterdir())) == 2


def test_columns_stay_where_no_row_does(tmp_path):
    path = tmp_path / "train.csv"
    CsvLog(path, None).append({"step": 3, "loss": 1.5})
    CsvLog(path, 2).append({"step": 1, "loss": 2.5})
    assert path.read_text("utf-8").splitlines() == ["step,loss", "1,2.5"]
