"""Runs of two processes that are broken off: all end, nothing is lost, the run goes on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import four_trainers
import pytest
import torch
from launchers import ROOT, command, environment, launch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

SCRIPT = """
import json, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import four_trainers
mode, model = sys.argv[2:]
rank = int(os.environ["RANK"])
first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"

def train(output_dir, harm=None, **options):
    trainer = four_trainers.make_trainer("lora", model, batch_size=2, lora_dropout=0.2,
                                output_dir=output_dir)
    calls = []
    def note(*_):
        if trainer.model.training:
            calls.append(1)
            if harm:
                harm(len(calls))
    trainer.model.register_forward_pre_hook(note)
    options = {"num_epochs": 4, "eval_strategy": "no", "save_strategy": "steps", "save_steps": 1,
               "gradient_accumulation_steps": 2} | options
    return list(four_trainers.run(trainer, "lora", **options))

def fail(call):
    if rank == 1 and call == 3:
        raise ValueError("row 3 is broken")

def die(call):
    if first and rank == 1 and call == 8:
        os.kill(os.getpid(), signal.SIGKILL)

if mode == "fail":
    train("failed", fail)
elif mode == "die":
    train("whole", resume_from_checkpoint="auto")
    train("killed", die, resume_from_checkpoint="auto")
elif mode == "slow":
    train("stopped", lambda call: time.sleep(0.2), num_epochs=200, save_steps=1000)
"""


@pytest.fixture(autouse=True)
def data(own_folder):
    four_trainers.write_data(own_folder)
    Path("script.py").write_text(SCRIPT, encoding="utf-8")


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter_model.safetensors")


def test_the_error_of_one_process_ends_all_and_is_shown(tiny_model_path):
    began = time.monotonic()
    done = launch("script.py", str(ROOT / "tests"), "fail", str(tiny_model_path), by="torchrun")
    assert done.returncode != 0
    assert "ValueError: row 3 is broken" in done.stderr
    assert time.monotonic() - began < 240  # gloo alone would wait for half an hour


@pytest.mark.long
def test_torchrun_restarts_a_killed_process_and_the_run_goes_on_bit_for_bit(tiny_model_path):
    done = launch(
        *("script.py", str(ROOT / "tests"), "die", str(tiny_model_path)),
        by="torchrun", options=("--max-restarts", "1"), timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    whole, killed = (weights(f"{top}/save_model/lora/Llama_4") for top in ("whole", "killed"))
    for name, tensor in whole.items():
        assert torch.equal(tensor, killed[name]), name
    steps = []
    for top in ("whole", "killed"):
        lines = Path(f"{top}/data_record/lora/train.csv").read_text().splitlines()
        steps.append([line.split(",")[0] for line in lines])
    assert steps[0] == steps[1] == ["step", "1", "2", "3", "4"]


def test_ctrl_c_leaves_a_checkpoint_that_one_process_goes_on_from(tiny_model_path):
    start = command("script.py", str(ROOT / "tests"), "slow", str(tiny_model_path), by="torchrun")
    process = subprocess.Popen(
        start, env=environment(), start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    record, deadline = Path("stopped/data_record/lora/train.csv"), time.monotonic() + 240
    while not record.is_file() or len(record.read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the launcher and all ranks
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "stopped by a signal" in errors, errors[-3000:]
    (stopped,) = Path("stopped/save_model/lora").glob("Llama_*")
    step = json.loads((stopped / "trainer_state" / "progress.json").read_text())["step"]
    assert stopped.name == f"Llama_{step}" and 2 <= step < 200
    # 2 x 2 rows of two processes are 8 x 1 of one.
    options = {"num_epochs": step + 1, "resume_from_checkpoint": "auto", "save_strategy": "no"}
    trainer = four_trainers.make_trainer(
        "lora", tiny_model_path, batch_size=8, output_dir="stopped", lora_dropout=0.2
    )
    results = list(four_trainers.run(trainer, "lora", eval_strategy="no", **options))
    assert [result.step for result in results] == [step + 1]
