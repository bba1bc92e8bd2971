"""300 epochs, 1,000 predictions and 200 broken-off streams leave nothing behind."""

import csv
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts by /proc")
def test_memory_threads_files_and_children_are_flat(tiny_model_path, tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "soak.py"), str(tiny_model_path), str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    with (tmp_path / "soak.csv").open(encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 100
    settled, end = rows[19:40], rows[-20:]
    for name in ("threads", "files", "children"):
        assert {row[name] for row in end} == {row[name] for row in settled}, name
    growth = statistics.median(r["memory"] for r in end) - statistics.median(
        r["memory"] for r in settled
    )
    print(f"memory of 100 rounds: {growth:+.1f} MiB from rounds 20-40 to 80-100")
    assert growth < 20
