"""The files of examples/launch start two machines, here both on the loopback address."""

import subprocess
import sys

import four
import pytest
import shared_copies
from launch import ROOT, environment, free_port


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "methods"), [("torchrun", list(four.METHODS)), ("accelerate", ["lora"])]
)
def test_two_machines_of_one_process_train_as_one_does(
    tiny_model_path, tmp_path, monkeypatch, name, methods
):
    monkeypatch.chdir(tmp_path)
    four.write_data(tmp_path)
    expected = shared_copies.one_process(tiny_model_path, methods)
    runs = shared_copies.runs(tiny_model_path, 2, expected)
    settings = {"NODES": "2", "PROCESSES": "1", "PORT": str(free_port()), "PYTHON": sys.executable}
    script = [str(ROOT / "examples" / "launch" / f"{name}.sh"), str(shared_copies.SCRIPT), *runs]
    machines = [
        subprocess.Popen(
            script,
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
    for machine, (out, error) in zip(machines, texts, strict=True):
        done = subprocess.CompletedProcess(script, machine.returncode, out, error)
        shared_copies.check(done, expected)
