"""Same seed, same machine, same processes: the same bits, in checkpoints and records."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import yaml
from launchers import ROOT, environment, launch

from main.trainer.loop.throughput import MEASURED

SCRIPT = ROOT / "tests" / "four_trainers.py"
METHODS = list(four_trainers.METHODS)
NOT_OF_THE_RUN = {"run_id", *MEASURED, "output_dir"}  # a name, clocks, a place


@pytest.fixture(autouse=True)
def data(own_folder):
    four_trainers.write_data(own_folder, 7, 3)


def settings(method: str, model: str | Path, folder: str, **options: Any) -> dict[str, Any]:
    dropout = 0.0 if method == "grpo" else 0.2  # GRPO has none
    setup = {"method": method, "model": str(model), "output_dir": folder, "lora_dropout": dropout}
    return setup | {"batch_size": 4, "options": {"save_strategy": "epoch"} | options}


def differing(one: Path, two: Path) -> list[str]:
    """Names of the files that two runs left and that are not the same, but for times."""
    names = [{str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()} for top in (one, two)]
    kept = [{name for name in found if "tfevents" not in name} for found in names]
    assert kept[0] == kept[1] and any("adapter_model" in name for name in kept[0])
    return sorted(name for name in kept[0] if content(one / name) != content(two / name))


def content(path: Path) -> Any:
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return [without_clock(row) for row in csv.DictReader(file)]
    if path.suffix == ".yaml":
        return without_clock(yaml.safe_load(path.read_text(encoding="utf-8")))
    if path.suffix == ".json":
        return without_clock(json.loads(path.read_text(encoding="utf-8")))
    return path.read_bytes()


def without_clock(found: Any) -> Any:
    if isinstance(found, dict):
        kept = {name: value for name, value in found.items() if name not in NOT_OF_THE_RUN}
        return {name: without_clock(value) for name, value in kept.items()}
    return [without_clock(value) for value in found] if isinstance(found, list) else found


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_in_one_process_leave_the_same_files(method, tiny_model_path):
    for folder in ("one", "two"):
        given = settings(method, tiny_model_path, folder, num_epochs=1)
        options = given.pop("options")
        model = given.pop("model")
        list(four_trainers.run(four_trainers.make_trainer(model=model, **given), method, **options))
    assert differing(Path("one"), Path("two")) == []


@pytest.mark.long
@pytest.mark.parametrize("threads", [1, 2])
def test_two_fresh_processes_leave_the_same_files(threads, tiny_model_path):
    for folder in ("one", "two"):
        runs = [json.dumps(settings(m, tiny_model_path, folder)) for m in METHODS]
        env = environment() | {"OMP_NUM_THREADS": str(threads)}
        subprocess.run([sys.executable, str(SCRIPT), *runs], env=env, check=True)
    assert differing(Path("one"), Path("two")) == []


@pytest.mark.long
@pytest.mark.distributed
def test_two_launches_of_two_processes_leave_the_same_files(tiny_model_path):
    for folder in ("one", "two"):
        runs = [json.dumps(settings(m, tiny_model_path, folder) | {"batch_size": 2})
                for m in METHODS]  # fmt: skip
        done = launch(SCRIPT, *runs, by="torchrun", timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
    assert differing(Path("one"), Path("two")) == []


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_two_runs_that_draw_with_vllm_leave_the_same_files(method, tiny_model_path):
    options = {"use_vllm": True, "vllm_mode": "colocate", "num_epochs": 1}
    for folder in ("one", "two"):
        run = json.dumps(settings(method, tiny_model_path, folder, **options))
        subprocess.run([sys.executable, str(SCRIPT), run], env=environment(), check=True)
    assert differing(Path("one"), Path("two")) == []
