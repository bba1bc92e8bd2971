"""Two processes do what one does: the same loss, records, adapter and evaluation."""

import json
from pathlib import Path

import four_trainers
import pytest
from launchers import ROOT, launch
from run_results import results, same_adapter, same_numbers
from tiny_task import TinyTask, make_rows

SCRIPT = ROOT / "tests" / "four_trainers.py"
# Without a GPU accelerate then counts one process, and the trainers have to know better.
EARLY = f"""
import sys
from accelerate import Accelerator
assert Accelerator().num_processes == 1
sys.path.insert(0, {str(SCRIPT.parent)!r})
import four_trainers
four_trainers.main()
"""


@pytest.fixture(autouse=True)
def data(own_folder):
    four_trainers.write_data(own_folder)


def test_one_process_where_several_were_asked_for_is_told(tmp_path, monkeypatch, caplog):
    """The environment that `accelerate launch --cpu --num_processes 2` makes."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    list(TinyTask(make_rows(4)).start(tmp_path, num_epochs=1))
    assert "starts one process only" in caplog.text


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("by", "methods"),
    [("accelerate", ["lora", "dpo", "ppo", "grpo"]), ("torchrun", ["lora"])],
)
def test_two_processes_train_and_evaluate_as_one_does(tiny_model_path, by, methods):
    """2 x 2 rows a process against 8; 7 rows leave a partial step and an uneven evaluation."""
    expected = {}
    for method in methods:
        trainer = four_trainers.make_trainer(
            method, tiny_model_path, batch_size=8, output_dir="one"
        )
        expected[method] = list(four_trainers.run(trainer, method))
    two = {"model": str(tiny_model_path), "batch_size": 2, "batch_size_eval": 3,
           "output_dir": "two", "options": {"gradient_accumulation_steps": 2}}  # fmt: skip
    Path("early.py").write_text(EARLY, encoding="utf-8")
    script = "early.py" if by == "torchrun" else SCRIPT
    done = launch(script, *(json.dumps({"method": m} | two) for m in methods), by=by, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = results(done.stdout)
    assert len(found) == 2 * sum(len(of_one) for of_one in expected.values())
    for method, train, evaluation, step in found:
        (same,) = [result for result in expected[method] if result.step == step]
        same_numbers(train, same.train, (method, step))
        same_numbers(evaluation, same.eval, (method, step))
    for method, of_one in expected.items():
        folder = of_one[-1].checkpoint
        same_adapter(str(folder), str(folder).replace("one/", "two/", 1))
        records = [Path(f"{top}/data_record/{method}/train.csv") for top in ("one", "two")]
        assert len({len(path.read_text("utf-8").splitlines()) for path in records}) == 1
