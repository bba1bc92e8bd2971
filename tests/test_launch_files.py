"""The files of examples/launch start two machines, here both on the loopback address."""

import subprocess
import sys

import four_trainers
import parallel_runs
import pytest
from launchers import ROOT, environment, free_port


@pytest.mark.long
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "methods"), [("torchrun", list(four_trainers.METHODS)), ("accelerate", ["lora"])]
)
def test_two_machines_of_one_process_train_as_one_does(
    tiny_model_path, tmp_path, monkeypatch, name, methods
):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    expected = parallel_runs.one_process(tiny_model_path, methods)
    runs = parallel_runs.runs(tiny_model_path, 2, expected)
    settings = {"NODES": "2", "PROCESSES": "1", "PORT": str(free_port()), "PYTHON": sys.executable}
    script = [str(ROOT / "examples" / "launch" / f"{name}.sh"), str(parallel_runs.SCRIPT), *runs]
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
        parallel_runs.check(done, expected)
