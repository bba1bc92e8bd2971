"""FSDP2, asked for through `accelerate launch`, trains as one process does."""

from typing import Any

import four_trainers
import parallel_runs
import pytest
from launchers import launch

from main.trainer.arguments import SetupOptions
from main.trainer.loop.launch import launch_problems
from main.trainer.placement import layout


@pytest.fixture
def fsdp(monkeypatch):
    """The environment of a process that accelerate has started with FSDP2."""
    for name, value in {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FSDP_VERSION", "1", "Launch with --fsdp_version 2"),
        ("FSDP_AUTO_WRAP_POLICY", "SIZE_BASED_WRAP", "use TRANSFORMER_BASED_WRAP"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "gradient_checkpointing=True"),
        ("WORLD_SIZE", "1", "and there is one"),
    ],
)
def test_settings_that_cannot_work_are_refused(fsdp, name, value, message):
    assert not launch_problems()
    fsdp.setenv(name, value)
    (problem,) = launch_problems()
    assert message in problem


@pytest.mark.distributed
def test_loss_and_gradients_are_those_of_the_whole_model():
    cases: list[dict[str, Any]] = [
        {"full": True},
        {"full": True, "tied": True, "reshard": False, "checkpointing": True},
        {"full": True, "adapter": {"use_dora": True}},
        {"full": True, "quantization": "4bit"},
    ]
    for case, found in zip(cases, parallel_runs.parts(2, *cases), strict=True):
        parallel_runs.check_parts(found, 0.51, case)


@pytest.mark.distributed
def test_two_processes_train_as_one_does_and_resume_exactly(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    expected = parallel_runs.one_process(tiny_model_path, ["lora", "dpo", "ppo", "grpo"])
    runs = parallel_runs.runs(tiny_model_path, 2, expected)
    done = launch(parallel_runs.SCRIPT, *runs, by="fsdp")
    parallel_runs.check(done, expected)
    assert done.stderr.count("FSDP2: the frozen weights") == 1


@pytest.mark.long
@pytest.mark.distributed
def test_a_four_bit_base_is_shared_out_too(tiny_model_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    setup = {"quantization": "4bit"}
    expected = parallel_runs.one_process(tiny_model_path, ["lora"], **setup)
    runs = parallel_runs.runs(tiny_model_path, 2, expected, **setup)
    parallel_runs.check(launch(parallel_runs.SCRIPT, *runs, by="fsdp"), expected)


def test_an_eight_bit_base_is_refused():
    setup = SetupOptions(from_pretrained="m", data_path="d", quantization="8bit")
    (problem,) = layout.problems(setup, layout.Layout(full=True))
    assert "quantization='8bit' does not go with FSDP2" in problem and "'4bit'" in problem
