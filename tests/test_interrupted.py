"""Ctrl-C and a polite kill in every phase: nothing is lost, and the same call goes on."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import four_trainers
import nbformat
import pytest
from launchers import ROOT, environment

INTERRUPTED = str(ROOT / "tests" / "interrupted.py")
STATUS = {"SIGINT": {130}, "SIGTERM": {128 + signal.SIGTERM, -signal.SIGTERM}}
SECONDS = 120


def adapter_of(model: Path, folder: Path) -> Path:
    four_trainers.write_data(folder, train=4, dev=2)
    four_trainers.make_trainer("lora", model).save(folder / "adapter")
    return folder / "adapter"


def cases(model: Path, folder: Path, *phases: str) -> list[dict[str, Any]]:
    """What became of each phase x signal, see tests/interrupted.py."""
    words = [str(model), str(adapter_of(model, folder)), str(folder / "cases"), *phases]
    settings = environment() | {"TOKENIZERS_PARALLELISM": "false"}  # its threads outlive no fork
    settings["PYTHONPATH"] += f":{ROOT / 'tests'}"
    command = [sys.executable, INTERRUPTED, *words]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line[5:]) for line in done.stdout.splitlines() if line[:5] == "CASE "]


def assert_lost_nothing(case: dict[str, Any]) -> None:
    assert case["status"] in STATUS[case["signal"]], case
    assert case["damaged"] == [], case
    assert case["again"] == 0, case  # the folder is free too
    assert case["digest"] == case["whole"] != "", case
    assert case["seconds"] < SECONDS, case


@pytest.mark.long
def test_a_signal_in_any_phase_loses_nothing(tiny_model_path, own_folder):
    found = cases(tiny_model_path, own_folder)
    print(f"{'phase':28}{'signal':9}{'again in':12}{'status':>7}{'seconds':>8}")
    for case in found:
        where = "the process" if case["same"] else "another"
        line = f"{case['phase']:28}{case['signal']:9}{where:12}{case['status']:7}"
        print(f"{line}{case['seconds']:8}")
    for case in found:
        assert_lost_nothing(case)
    assert len(found) >= 100


@pytest.mark.slow
def test_a_signal_in_a_step_and_in_a_prediction_loses_nothing(tiny_model_path, own_folder):
    found = cases(tiny_model_path, own_folder, "in a step", "streaming")
    assert len(found) == 6
    for case in found:
        assert_lost_nothing(case)


TRAINING = """
import sys, threading, time
sys.path.insert(0, {tests!r})
import four_trainers
trainer = four_trainers.make_trainer("lora", {model!r}, batch_size=2)
def train(resume):
    return list(four_trainers.run(trainer, "lora", save_strategy="epoch",
                                  resume_from_checkpoint=resume))
"""
SLOW = """
def slowly(*_):
    print("a step", flush=True)
    time.sleep(0.5)
hook = trainer.policy.get_input_embeddings().register_forward_hook(slowly)
train("auto")
"""
GO_ON = """
hook.remove()
print("RESULT", [(r.epoch, r.train["loss"]) for r in train("auto")][-1])
"""
ALONE = """
trainer = four_trainers.make_trainer("lora", {model!r}, batch_size=2, task_name="alone")
print("RESULT", [(r.epoch, r.train["loss"]) for r in train(None)][-1])
"""


class Interrupting:
    """Interrupts a notebook's kernel at the first step that a cell prints."""

    def __init__(self) -> None:
        from nbclient import NotebookClient

        outer = self
        self.sent = False

        class Client(NotebookClient):
            def process_message(self, message, cell, index):
                text = message.get("content", {}).get("text", "")
                if text.startswith("a step") and not outer.sent:
                    outer.sent = True
                    kernel: Any = self.km
                    self.interrupting = asyncio.ensure_future(kernel.interrupt_kernel())
                return super().process_message(message, cell, index)

        self.client = Client

    def run(self, cells: list[str], folder: Path) -> list[Any]:
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        where = {"metadata": {"path": str(folder)}}
        self.client(notebook, timeout=600, resources=where, allow_errors=True).execute()
        return [cell.outputs for cell in notebook.cells]


def said(outputs: list[Any]) -> str:
    return "".join(o.get("text", "") for o in outputs)


@pytest.mark.long
def test_a_notebook_that_is_interrupted_goes_on_in_its_next_cell(
    tiny_model_path, own_folder, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    four_trainers.write_data(own_folder, train=8, dev=2)
    words = {"tests": str(ROOT / "tests"), "model": str(tiny_model_path)}
    cells = [TRAINING.format(**words), SLOW, GO_ON, ALONE.format(**words)]
    interrupting = Interrupting()
    _, stopped, went_on, alone = interrupting.run(cells, own_folder)
    assert interrupting.sent
    assert [o.ename for o in stopped if o.output_type == "error"] == ["KeyboardInterrupt"]
    assert "stopped by a signal" in said(stopped)
    result = [line for line in said(went_on).splitlines() if line.startswith("RESULT")]
    assert result and result == [x for x in said(alone).splitlines() if x.startswith("RESULT")]
