"""SFT runs as their user sees them: what is evaluated when, what a resume goes on with, stops."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import torch
from launchers import ROOT, environment, launch

ENDLESS_STEP = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import four_trainers
trainer = four_trainers.make_trainer("lora", sys.argv[2])

def wait(*_):
    Path("in_a_step").touch()
    time.sleep(600)

trainer.policy.get_input_embeddings().register_forward_hook(wait)
list(four_trainers.run(trainer, "lora", save_strategy="steps", save_steps=1))
"""

SLOW_STEPS = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import four_trainers
trainer = four_trainers.make_trainer("lora", sys.argv[2], batch_size=2)
trainer.policy.get_input_embeddings().register_forward_hook(lambda *_: time.sleep(0.5))
run = four_trainers.run(trainer, "lora", eval_strategy="no", save_strategy="no")
first = next(run)
began = time.perf_counter()
second = next(run)
seconds = time.perf_counter() - began
tokens = sum(len(row["input_ids"]) for row in trainer.train_data)
slept = 0.5 * (second.step - first.step)
found = [second.train["tokens_per_second"], tokens / seconds, tokens / slept]
sys.stdout.write(f"FOUND {json.dumps(found)}\\n")
"""


pytestmark = pytest.mark.usefixtures("own_folder")


def train(model: Path, rows: int, stop_after: int | None = None, **options) -> list:
    """Results of a run of two rows a step; it is left after `stop_after` epochs."""
    four_trainers.write_data(Path(), train=rows, dev=3)
    results = []
    trainer = four_trainers.make_trainer("lora", model, batch_size=2)
    for result in four_trainers.run(trainer, "lora", **options):
        results.append(result)
        if len(results) == stop_after:
            break
    return results


def recorded(kind: str) -> list[tuple[int, float]]:
    """Step and loss of every row of a CSV file."""
    with open(f"data_record/lora/{kind}.csv", encoding="utf-8", newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


def test_evaluation_by_steps_is_made_inside_an_epoch(tiny_model_path):
    options: dict[str, Any] = {"num_epochs": 1, "eval_strategy": "steps", "eval_steps": 2}
    (result,) = train(tiny_model_path, rows=10, **options)  # five steps
    assert [step for step, _ in recorded("eval")] == [2, 4, 5]  # 5 is the end of the run
    assert result.eval["loss"] == recorded("eval")[-1][1]


def test_an_evaluation_due_at_the_last_step_of_an_epoch_is_made_once_and_is_in_its_result(
    tiny_model_path,
):
    options: dict[str, Any] = {"num_epochs": 2, "eval_strategy": "steps", "eval_steps": 3}
    results = train(tiny_model_path, rows=6, **options)  # three steps an epoch
    assert [result.step for result in results] == [3, 6]
    assert recorded("eval") == [(result.step, result.eval["loss"]) for result in results]


def test_a_resume_from_an_earlier_checkpoint_takes_the_later_rows_out_of_the_records(
    tiny_model_path,
):
    first, *_ = train(tiny_model_path, rows=4, num_epochs=3)
    again = {"num_epochs": 3, "resume_from_checkpoint": first.checkpoint}
    results = train(tiny_model_path, rows=4, **again)
    assert [result.step for result in results] == [4, 6]
    assert [step for step, _ in recorded("train")] == [1, 2, 3, 4, 5, 6]
    assert [step for step, _ in recorded("eval")] == [2, 4, 6]


def test_a_resume_knows_the_best_checkpoint_and_how_long_nothing_was_better(tiny_model_path):
    """The largest loss is wanted here: the first epoch is best, and each later one is worse."""
    options: dict[str, Any] = {
        "num_epochs": 9, "save_total_limit": 1, "resume_from_checkpoint": "auto",
        "greater_is_better": True, "early_stopping_patience": 3,
    }  # fmt: skip
    first, _ = train(tiny_model_path, rows=4, stop_after=2, **options)
    results = train(tiny_model_path, rows=4, **options)
    assert [result.epoch for result in results] == [3, 4]
    best, newest = first.checkpoint, results[-1].checkpoint
    assert set(best.parent.glob("Llama_*")) == {best, newest}


def test_a_real_allocation_that_fails_halves_the_micro_batch_and_keeps_the_step(
    tiny_model_path, caplog
):
    four_trainers.write_data(Path(), train=8, dev=3)

    def losses(batches_above_two_fail: bool, folder: str) -> list[float]:
        trainer = four_trainers.make_trainer(
            "lora", tiny_model_path, batch_size=8, output_dir=folder
        )
        if batches_above_two_fail:
            trainer.model.register_forward_pre_hook(ask_for_too_much, with_kwargs=True)
        return [
            result.train["loss"]
            for result in four_trainers.run(trainer, "lora", eval_strategy="no")
        ]

    def ask_for_too_much(module, arguments, inputs):
        if len(inputs["input_ids"]) > 2:
            torch.empty(1 << 50)

    assert losses(True, "small") == pytest.approx(losses(False, "roomy"), rel=1e-5)
    assert "out of memory: micro-batches of at most 2 rows" in caplog.text


@pytest.mark.distributed
def test_two_processes_report_the_tokens_a_second_of_both_together(tiny_model_path):
    four_trainers.write_data(Path(), train=12, dev=3)
    Path("slow.py").write_text(SLOW_STEPS, encoding="utf-8")
    done = launch("slow.py", str(ROOT / "tests"), str(tiny_model_path), by="torchrun")
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line[6:]) for line in done.stdout.splitlines() if line[:6] == "FOUND "]
    (rate, at_least, at_most), (same, at_least_too, _) = found
    # An epoch lasts longer than its steps, and these longer than they sleep: no factor of two fits.
    assert rate == same
    assert min(at_least, at_least_too) < rate < at_most


def test_a_second_ctrl_c_ends_a_real_process_in_the_middle_of_a_step(tiny_model_path):
    four_trainers.write_data(Path(), train=4, dev=3)
    script = [sys.executable, "-c", ENDLESS_STEP, str(ROOT / "tests"), str(tiny_model_path)]
    with subprocess.Popen(script, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            wait(process, 120, until=Path("in_a_step").exists)
            wait(process, 30, between=lambda: process.send_signal(signal.SIGINT))
            assert process.poll() is not None, "the process goes on with its step"
        finally:
            process.kill()
        assert process.stderr and "KeyboardInterrupt" in process.stderr.read()
    left = [path.name for path in Path("save_model").rglob("*") if path.is_file()]
    assert left == ["run.yaml"]  # no checkpoint, and no lock


def wait(process, seconds, until=lambda: False, between=lambda: None) -> None:
    """Until the process ends, at most; `between` twice a second, as two signals at once are one."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and not until() and time.monotonic() < deadline:
        between()
        time.sleep(0.5)
