"""Every script of `examples/` runs as its first lines say, one stage on the checkpoint before."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import small_project

ROOT = small_project.ROOT
# Not in the chain, and which file runs them.
ELSEWHERE = {"predict_vllm.py": "test_examples.py", "predict_vl.py": "test_predictor_vl.py"}
SFT, PPO = "save_model/sft_example/Llama_2", "save_model/ppo_example"
CHAIN = {  # in this order: a later script takes what an earlier one left
    "sft.py": [],
    "dpo.py": ["--resume", SFT],
    "grpo.py": ["--adapter", SFT],
    "ppo.py": ["--adapter", SFT, "--form", "offline"],
    "distill.py": ["--teacher", SFT],
    "run.py": ["--adapter", SFT],
    "predict.py": ["--peft_path", SFT],
    "batch_inference.py": ["--peft_path", SFT],
    "merge.py": ["--peft_path", SFT, "--output", "merged"],
    "stages.py": ["--max_rows", "8", "--test_rows", "4"],
    "quickstart.py": ["--epochs", "1", "--rows", "4"],
}


@pytest.fixture(scope="module")
def printed(tmp_path_factory, tiny_model_path, encoder_path) -> dict[str, str]:
    """What each script printed, and under "folder" where they ran."""
    folder = tmp_path_factory.mktemp("project")
    small_project.make(folder, tiny_model_path, encoder_path)
    found = {"folder": str(folder)}
    for name, arguments in CHAIN.items():
        found[name] = small_project.run([f"examples/{name}", *arguments], folder)
    found["ppo.py by a reward model"] = small_project.run(
        ["examples/ppo.py", "--adapter", SFT, "--reward", "model", "--task", "by_model"], folder
    )
    return found


def test_no_example_is_left_out():
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert scripts == set(CHAIN) | set(ELSEWHERE)
    for name, where in ELSEWHERE.items():
        assert name in (ROOT / "tests" / where).read_text("utf-8")


@pytest.mark.long
def test_the_training_scripts_report_their_epochs_and_leave_checkpoints(printed):
    folder = Path(printed["folder"])
    for name in ("sft.py", "dpo.py", "grpo.py", "ppo.py", "distill.py"):
        assert "EpochResult(epoch=1" in printed[name], printed[name]
        task = folder / "save_model" / f"{name[:-3]}_example"
        assert list(task.glob("Llama_*/adapter_config.json")), name
    assert (folder / SFT).is_dir()
    assert "pairs right" in printed["ppo.py by a reward model"]
    assert list((folder / "save_model/ppo_example").glob("Critic_*"))


@pytest.mark.long
def test_the_scripts_that_ask_and_merge_show_their_answers(printed):
    folder = Path(printed["folder"])
    answers = (folder / "outputs_ticket_en_test.jsonl").read_text("utf-8").splitlines()
    assert len(answers) == small_project.ROWS
    assert all("response" in json.loads(line) for line in answers)
    assert "BLEU-4" in printed["batch_inference.py"]
    assert (folder / "merged/model.safetensors").is_file()
    assert "largest difference of a logit" in printed["merge.py"]
    assert printed["predict.py"].strip()


@pytest.mark.long
def test_the_stages_end_with_a_table_of_all(printed):
    table = printed["stages.py"].rpartition("+\n| after")[2]
    assert [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")] == [
        "the base model", "sft", "sft -> dpo", "dpo -> grpo", "sft -> ppo"
    ]  # fmt: skip


@pytest.mark.long
def test_the_commands_that_the_quickstart_names_work(printed):
    _, _, last = printed["quickstart.py"].partition("Try next\n")
    commands = [line.split() for line in last.splitlines() if "examples/" in line]
    assert len(commands) == 2
    for command in commands:
        small_project.run(command[1:], Path(printed["folder"]))


@pytest.mark.vllm
def test_the_vllm_example_answers_with_the_real_model(small_model_path, tmp_path):
    script = str(ROOT / "examples" / "predict_vllm.py")
    printed = small_project.run([script, "--model", str(small_model_path)], tmp_path)
    assert re.search(r"One of two words: (exchange|refund)\nJSON: {'item': ", printed), printed


def test_a_run_that_would_share_the_servers_device_is_refused(tmp_path):
    import os
    import sys

    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "0,1"}
    command = [sys.executable, str(ROOT / "examples/run.py"), "--vllm_device", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode and "--vllm_device 1 is among this run's" in done.stderr
