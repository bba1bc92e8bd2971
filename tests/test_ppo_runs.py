"""PPO runs that are killed, shared between processes, or run on the real small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launchers import kill_at
from tiny_ppo import QUICK, make_trainer, trained

from main.trainer.ppo import Trainer

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "OMP_NUM_THREADS": "1",
}


pytestmark = pytest.mark.usefixtures("own_folder")


RUN = """
import json, sys
from tiny_ppo import QUICK
from main.trainer.ppo import Trainer
arguments, options = json.loads(sys.argv[1])
for result in Trainer(**arguments)(**QUICK | options):
    sys.stdout.write("RESULT " + json.dumps([result.train, result.eval, result.step]) + "\\n")
"""


def write_script(arguments, options) -> list[str]:
    Path("script.py").write_text(RUN, encoding="utf-8")
    return ["script.py", json.dumps([arguments, options])]


def arguments_of(model: Path, **changes) -> dict:
    return {
        "from_pretrained": str(model),
        "data_path": {"train": "train.jsonl", "dev": "dev.jsonl"},
        "max_length": 128,
        "batch_size": 2,
        "lora_r": 4,
        "task_name": "demo",
        "ratio_for_rlhf": 0.5,
    } | changes


@pytest.mark.long
@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_a_killed_run_resumes_bit_equal(tiny_model_path, critic):
    """kill -9 within an epoch of mixed batches, with dropout, accumulation and a moving kl_coef."""
    options = {
        "num_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "kl_coef": 0.1,
        "kl_target": 0.5,
    }
    changes = {"critic": critic, "lora_dropout": 0.2, "batch_size": 2, "ratio_for_rlhf": 0.5}
    whole = make_trainer(tiny_model_path, output_dir="whole", **changes)
    list(whole(**QUICK | options))
    command = [sys.executable, *write_script(arguments_of(tiny_model_path, **changes), options)]
    kill_at("save_model/demo/Llama_4", command, ENVIRONMENT)
    assert Path("save_model/demo/Critic_4").is_dir()  # it stands before the checkpoint does
    resumed = make_trainer(tiny_model_path, **changes)
    list(resumed(**QUICK | options | {"resume_from_checkpoint": "auto"}))
    assert kl_coef("whole") == kl_coef(".") != 0.1
    for name, value in trained(whole).items():
        assert torch.equal(value, trained(resumed)[name]), name


def kl_coef(folder: str) -> float:
    """As the run's last checkpoint holds it."""
    found = Path(folder, "save_model/demo").glob("Llama_*")
    newest = max(found, key=lambda path: int(path.name.rpartition("_")[2]))
    progress = json.loads((newest / "trainer_state/progress.json").read_text(encoding="utf-8"))
    return progress["task"]["kl_coef"]


@pytest.mark.distributed
@pytest.mark.parametrize("critic", ["head", "adapter"])
def test_two_processes_train_and_evaluate_as_one_does(tiny_model_path, critic):
    """Seven rows: the last draw gives one process a filler."""
    options = {"num_epochs": 1, "lr": 1e-3, "eval_strategy": "epoch", "save_strategy": "epoch"}
    one = make_trainer(
        tiny_model_path, rows=7, batch_size=4, output_dir="one", ratio_for_rlhf=0.5, critic=critic
    )
    expected = list(one(**QUICK | options))[-1]
    arguments = arguments_of(tiny_model_path, output_dir="two", batch_size_eval=2, critic=critic)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += write_script(arguments, options)
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(lines) == 2  # both processes see the same results
    for line in lines:
        train, evaluation, step = json.loads(line.removeprefix("RESULT "))
        assert step == expected.step
        for name in ("loss", "reward/mean", "reward/std", "kl", "explained_variance", "online"):
            assert train[name] == pytest.approx(expected.train[name], rel=1e-3, abs=1e-5), name
        for name, value in expected.eval.items():
            assert evaluation[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    again = Trainer(
        **arguments_of(
            tiny_model_path,
            critic=critic,
            actor_resume_path=f"two/save_model/demo/Llama_{expected.step}",
            critic_resume_path=f"two/save_model/demo/Critic_{expected.step}",
        )
    )
    for name, tensor in trained(again).items():
        torch.testing.assert_close(tensor, trained(one)[name], rtol=1e-3, atol=1e-5, msg=name)
