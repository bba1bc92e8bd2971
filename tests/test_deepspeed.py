"""DeepSpeed: its file agrees with the trainer or is refused; ZeRO trains as one process does."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import four_trainers
import parallel_runs
import pytest
import torch
from launchers import ROOT, environment, free_port
from run_results import results, same_adapter, same_numbers
from safetensors.torch import load_file

from main.errors import ConfigError
from main.trainer.loop.launch import launch_problems
from main.trainer.placement import ds_config

SHIPPED = json.loads((ROOT / "ds_config.json").read_text(encoding="utf-8"))
GIVEN = ds_config.Agreed(4, 2, 2, 1.0, bf16=False, fp16=False)


def test_auto_is_filled_in_from_the_trainer():
    assert not ds_config.problems(SHIPPED)
    agreed = ds_config.agree(SHIPPED, GIVEN)
    assert agreed["train_micro_batch_size_per_gpu"] == 4
    assert agreed["gradient_accumulation_steps"] == 2
    assert agreed["train_batch_size"] == 16
    assert agreed["gradient_clipping"] == 1.0
    assert not agreed["fp16"]["enabled"] and not agreed["bf16"]["enabled"]
    assert "auto" not in json.dumps(agreed)
    assert SHIPPED["train_micro_batch_size_per_gpu"] == "auto"  # the caller's is as it was


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 1}, "_per_gpu=1 and the trainer's batch_size=4"),
        ({"gradient_accumulation_steps": 1}, "steps=1 and the trainer's .*steps=2 disagree"),
        ({"train_batch_size": 8}, "train_batch_size=8 and .*=16 disagree"),
        ({"gradient_clipping": 0.5}, "0.5 and the trainer's max_grad_norm=1.0 disagree"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "choose one"),
    ],
)
def test_a_disagreement_is_an_error_that_shows_both(change, message):
    with pytest.raises(ConfigError, match=message):
        ds_config.agree(SHIPPED | change, GIVEN)


def test_the_file_may_switch_on_a_precision_but_not_off():
    assert ds_config.agree(SHIPPED | {"fp16": {"enabled": True}}, GIVEN)["fp16"]["enabled"]
    off = SHIPPED | {"fp16": {"enabled": False}}
    with pytest.raises(ConfigError, match=r"fp16\.enabled=false and the trainer's fp16=True"):
        ds_config.agree(off, GIVEN._replace(fp16=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline_model_parallel_size": 2}, "pipelines are not supported"),
        ({"gradient_acumulation_steps": 2}, "Did you mean 'gradient_accumulation_steps'"),
        ({"optimizer": {"type": "Adam"}}, "come from the trainer's lr"),
    ],
)
def test_a_key_that_nobody_reads_is_refused(change, message, tmp_path, monkeypatch):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(SHIPPED | change))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    (problem,) = ds_config.check()
    assert problem.startswith("DeepSpeed config: ") and message in problem


def test_a_way_of_sharding_that_is_not_supported_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    (problem,) = launch_problems()
    assert problem.startswith("Megatron-LM is not supported") and "ZeRO stage 3" in problem


CONFIG = """
distributed_type: DEEPSPEED
deepspeed_config: {deepspeed_config_file: ./ds_config.json, zero3_init_flag: false}
num_machines: 1
num_processes: 2
use_cpu: false
"""


# four_trainers.py where the second process makes more passes than the first when it draws.
UNEVEN = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
import four_trainers, torch
from main.trainer.policy.logprobs import scoring
from main.trainer.rollout.sampler import HFSampler
from main.system.processes import this_process

def sample(sampler, *arguments):
    with scoring(sampler.policy):
        for _ in range(3 * this_process().rank):
            sampler.policy(input_ids=torch.arange(5)[None])
    return draw(sampler, *arguments)

draw, HFSampler.sample = HFSampler.sample, sample
four_trainers.main()
"""


def launched(stage: int, *runs: dict, **changes: int) -> subprocess.CompletedProcess[str]:
    """The trainers by `accelerate launch`, as the guide's section on DeepSpeed has it."""
    # Without a threshold of 0 the weights of a model this small would not be shared out.
    zero = SHIPPED["zero_optimization"] | {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = SHIPPED | {"zero_optimization": zero} | changes
    Path("uneven.py").write_text(UNEVEN)
    Path("ds_config.json").write_text(json.dumps(config))
    Path("accelerate.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", "accelerate.yaml", "--main_process_port", str(free_port())]
    bin_of_ninja = str(Path(sys.executable).parent)
    return subprocess.run(
        [*command, "uneven.py", *map(json.dumps, runs)],
        env=environment()
        | {"DS_ACCELERATOR": "cpu", "PATH": f"{bin_of_ninja}:{os.environ['PATH']}"},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: make install-deepspeed",
)


@pytest.mark.distributed
@needs_deepspeed
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.long), 3])
def test_zero_trains_as_one_process_does_and_resumes_exactly(
    tiny_model_path, tmp_path, monkeypatch, stage
):
    """2 x 2 rows a process against 8; a run from the first epoch's checkpoint ends bit-equal."""
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    methods, expected = ["lora", "dpo", "ppo", "grpo"], {}
    for method in methods:
        trainer = four_trainers.make_trainer(
            method, tiny_model_path, batch_size=8, output_dir="one"
        )
        expected[method] = list(four_trainers.run(trainer, method, **parallel_runs.ANSWERS))
    two: dict[str, Any] = {"model": str(tiny_model_path), "batch_size": 2, "batch_size_eval": 3,
           "output_dir": "two",
           "options": {"gradient_accumulation_steps": 2} | parallel_runs.ANSWERS}  # fmt: skip
    first = str(expected["lora"][0].checkpoint).replace("one/", "two/", 1)
    again = two["options"] | {"resume_from_checkpoint": first}
    done = launched(
        stage,
        *({"method": method} | two for method in methods),
        {"method": "lora"} | two | {"output_dir": "again", "options": again},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for method, train, evaluation, step in results(done.stdout):
        (same,) = [result for result in expected[method] if result.step == step]
        same_numbers(train, same.train, (method, step))
        same_numbers(evaluation, same.eval, (method, step))
    for of_one in expected.values():
        folder = str(of_one[-1].checkpoint)
        same_adapter(folder, folder.replace("one/", "two/", 1))
    last = str(expected["lora"][-1].checkpoint)
    whole, resumed = (
        load_file(Path(last.replace("one/", f"{top}/", 1)) / "adapter_model.safetensors")
        for top in ("two", "again")
    )
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.distributed
@needs_deepspeed
def test_the_launch_of_the_guide_splits_the_model_when_its_file_says_so(
    tiny_model_path, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    expected = parallel_runs.one_process(tiny_model_path, ["lora"])
    runs = map(json.loads, parallel_runs.runs(tiny_model_path, 1, expected))
    done = launched(3, *runs, tensor_model_parallel_size=2)
    parallel_runs.check(done, expected)
    assert done.stderr.count("splits the matrices over 2 neighbouring processes") == 1
