"""The files of examples/launch start two machines, here both on the loopback address."""

import json
import subprocess
import sys
from pathlib import Path

import four
import pytest
from launch import ROOT, environment, free_port
from test_processes import results


@pytest.mark.distributed
@pytest.mark.parametrize("name", ["torchrun", "accelerate"])
def test_two_machines_of_one_process_train_together(tiny_model_path, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    four.write_data(tmp_path)
    arguments = {"method": "lora", "model": str(tiny_model_path), "options": {"num_epochs": 1}}
    settings = {"NODES": "2", "PROCESSES": "1", "PORT": str(free_port()), "PYTHON": sys.executable}
    script = [str(ROOT / "examples" / "launch" / f"{name}.sh"), str(ROOT / "tests" / "four.py")]
    machines = [
        subprocess.Popen(
            [*script, json.dumps(arguments)],
            env=environment() | settings | {"NODE_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        texts = [machine.communicate(timeout=300) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [m.returncode for m in machines] == [0, 0], [error[-2000:] for _, error in texts]
    found = [results(text) for text, _ in texts]
    # 7 rows are one step of 2 processes x 4 rows, and two steps of a process by itself.
    assert found[0] == found[1] and [step for *_, step in found[0]] == [1]
    assert Path("save_model/lora/Llama_1/adapter_model.safetensors").is_file()
