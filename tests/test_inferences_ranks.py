"""Batch inference shared by two real processes, started as a launcher starts them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from main.evaluation.inferences import inference_with_data_path

pytestmark = pytest.mark.distributed

WORKER = """
import json, os, sys, time
from pathlib import Path
from main.evaluation.inferences import inference_with_data_path

data, save, mode = sys.argv[1:]
rank = int(os.environ["RANK"])
answered = 0

def batcher(item):
    global answered
    if mode == "slow0" and rank == 0:
        time.sleep(0.3)
    if mode == "die1" and rank == 1 and answered >= 4:
        os._exit(9)
    if mode == "wrong1" and rank == 1:
        return []
    time.sleep(0.02)
    answered += len(item["query"])
    return [f"re: {query}" for query in item["query"]]

if mode == "split":
    data = data if rank == 0 else data + ".other"
try:
    summary = inference_with_data_path(data, batcher, save, 2)
    print(json.dumps({"rank": rank, "answered": answered, "rows": summary.rows}))
except Exception as error:
    print(json.dumps({"rank": rank, "error": f"{type(error).__name__}: {error}"}))
"""


def start(data: Path, save: Path, mode: str) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", WORKER, str(data), str(save), mode],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def launch(data: Path, save: Path, mode: str = "") -> tuple[list[dict], str]:
    """The reports of both processes, and everything that they printed."""
    processes = start(data, save, mode)
    try:
        texts = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    out = "".join(out for out, _ in texts)
    assert out.count("{") == 2, [error[-2000:] for _, error in texts]
    reports = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return sorted(reports, key=lambda report: report["rank"]), out


def launch_until_death(data: Path, save: Path) -> None:
    """Process 1 dies; process 0 is then killed, as a launcher does."""
    processes = start(data, save, "die1")
    try:
        assert processes[1].wait(timeout=120) == 9
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def responses(save: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in save.read_text(encoding="utf-8").splitlines()]
    return [(line["idx"], line["response"]) for line in lines]


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"query": "q{i}"}}\n' for i in range(31)))
    return path


EXPECTED = [(i, f"re: q{i}") for i in range(31)]


def test_two_processes_share_the_rows_by_need_into_one_ordered_file(data, tmp_path):
    save = tmp_path / "out.jsonl"
    reports, out = launch(data, save, "slow0")
    assert responses(save) == EXPECTED
    assert [report["rows"] for report in reports] == [31, 31]
    assert sum(report["answered"] for report in reports) == 31
    # Process 0 is fifteen times slower; an equal split would give it half of the rows.
    assert 0 < reports[0]["answered"] < 12
    assert out.count("31 rows, 0 failed") == 1
    assert not (tmp_path / "out.jsonl.parts").exists()


def test_run_with_a_dead_process_continues_in_two_or_in_one(data, tmp_path):
    for restart in ("two", "one"):
        save = tmp_path / f"{restart}.jsonl"
        launch_until_death(data, save)
        parts = sorted((tmp_path / f"{restart}.jsonl.parts").glob("part-*.jsonl"))
        done = {idx for part in parts for idx, _ in responses(part)}
        assert 4 <= len(done) < 31
        if restart == "two":
            reports, _ = launch(data, save)
            assert sum(report["answered"] for report in reports) == 31 - len(done)
        else:
            asked: list[str] = []

            def batcher(item, asked=asked):
                asked.extend(item["query"])
                return [f"re: {query}" for query in item["query"]]

            inference_with_data_path(data, batcher, save, 4)
            assert not {f"q{idx}" for idx in done} & set(asked)
        assert responses(save) == EXPECTED


def test_error_of_one_process_ends_both_and_is_told_by_both(data, tmp_path):
    save = tmp_path / "out.jsonl"
    reports, _ = launch(data, save, "wrong1")
    assert reports[1]["error"].startswith("ConfigError: batcher returned 0 responses for 2")
    assert reports[0]["error"].startswith("MainError: rank 1: ConfigError: batcher returned 0")
    launch(data, save)
    assert responses(save) == EXPECTED


def test_refusal_of_the_main_process_reaches_the_other(data, tmp_path):
    save = tmp_path / "out.jsonl"
    save.write_text("something else\n")
    reports, _ = launch(data, save)
    assert "is not a line of responses" in reports[0]["error"]
    assert reports[1]["error"].startswith("MainError: rank 0: DataError:")
    assert save.read_text() == "something else\n"


def test_processes_with_different_rows_are_refused(data, tmp_path):
    (tmp_path / "data.jsonl.other").write_text('{"query": "other"}\n')
    reports, _ = launch(data, tmp_path / "out.jsonl", "split")
    assert "given different rows" in reports[0]["error"]
    assert "given different rows" in reports[1]["error"]
