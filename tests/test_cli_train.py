"""`main-peft train`: the run of the script, the run of its own file, and how runs end."""

import json
import signal
from pathlib import Path

import four_trainers
import launchers
import pytest
import yaml
from command_line import run, start
from tiny_grpo import write_rows

from main.cli.train import line
from main.errors import ConfigError
from main.trainer.grpo import Trainer as GRPOTrainer
from main.trainer.loop.run_file import SECRET, run_text, spelt, written
from main.trainer.lora import Trainer
from main.types import EpochResult
from main.utils.reward_func import reward_len

CALL = {"num_epochs": 2, "lr": 1e-2, "logging_steps": 1, "report_to": "none"}
GRPO_CALL = {"max_steps": 2, "num_generations": 4, "max_completion_length": 5, "report_to": "none"}


@pytest.fixture
def folders(tmp_path, tiny_model_path, monkeypatch):
    """Makes working directories with the same data and model, each with its own runs."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def enter(name: str) -> Path:
        folder = tmp_path / name
        if not folder.is_dir():
            folder.mkdir()
            (folder / "tiny").symlink_to(tiny_model_path)
            four_trainers.write_data(folder)
        monkeypatch.chdir(folder)
        return folder

    return enter


def flags(**values) -> list[str]:
    texts = {name: json.dumps(value).strip('"') for name, value in values.items()}
    return [word for name, text in texts.items() for word in (f"--{name}", text)]


def setup(method: str) -> dict:
    data = {split: f"{method}_{split}.jsonl" for split in ("train", "dev")}
    return {"from_pretrained": "tiny", "data_path": data, "batch_size": 4, "task_name": "t"}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of every checkpoint, but for the one that holds how fast the run was."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("save_model/t/*_*/**/*"))
        if path.is_file() and path.name != "progress.json"
    }
    assert any(name.endswith("adapter_model.safetensors") for name in found)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", pytest.param("grpo", marks=pytest.mark.long)])
def test_script_flags_and_the_runs_own_file_make_the_same_checkpoints(method, folders, capsys):
    script = folders("script")
    reward = {"reward_func": [reward_len]} if method == "grpo" else {}
    call, trainer = (GRPO_CALL, GRPOTrainer) if method == "grpo" else (CALL, Trainer)
    results = list(trainer(**setup(method))(**call, **reward))
    expected, file = content(script), script / "save_model/t/run.yaml"

    by_flags = folders("flags")
    name = ["--reward_func", "[main.utils.reward_func:reward_len]"] if reward else []
    words = flags(**setup(method), **call)
    status, out, _ = run(capsys, "train", method, *words, *name)
    assert status == 0 and out.startswith(line(results[0]).split("tokens_per_second")[0])
    assert content(by_flags) == expected
    assert (by_flags / "save_model/t/run.yaml").read_bytes() == file.read_bytes()

    by_file = folders("file")
    assert run(capsys, "train", "--config", str(file))[0] == 0
    assert content(by_file) == expected
    assert run(capsys, "train", "dpo", "--config", str(file))[0] == 2


def test_every_argument_stands_in_the_file_and_none_is_given_by_it_that_was_not(folders):
    folder = folders("one")
    trainer = Trainer(**setup("lora"))
    next(iter(trainer(max_steps=1, report_to="none", logging_strategy="no")))
    read = yaml.safe_load((folder / "save_model/t/run.yaml").read_text(encoding="utf-8"))
    defaults = read.pop("defaults")
    assert read == {
        "method": "lora",
        **setup("lora"),
        "max_steps": 1,
        "report_to": "none",
        "logging_strategy": "no",
    }
    assert defaults["num_epochs"] == 3 and defaults["lora_r"] == 16


def test_a_run_that_saves_nothing_writes_no_file(folders):
    folder = folders("one")
    list(Trainer(**setup("lora"))(max_steps=1, report_to="none", save_strategy="no"))
    assert not (folder / "save_model").exists()


def test_secrets_and_objects_are_not_written_and_are_refused_when_read(folders, capsys):
    def local(completions, **columns):
        return []

    assert written("vllm_server_base_url", "http://me:pw@host:1/v1") == "http://host:1/v1"
    assert written("tracker", {"api_key": "sk-1", "bos_token": "<s>"}) == {
        "api_key": SECRET,
        "bos_token": "<s>",
    }
    assert written("tokenizer", object()) == "<object of a script: object>"
    assert written("reward_func", [local]) == ["<object of a script: function>"]
    assert written("reward_func", write_rows).endswith("tests/tiny_grpo.py:write_rows") or (
        written("reward_func", write_rows) == "tiny_grpo:write_rows"
    )
    with spelt({"reward_func": "reward_len"}):
        assert written("reward_func", local) == "reward_len"
    folder = folders("one")
    text = run_text({"method": "lora", **setup("lora"), "tokenizer": object()}, {}, "x")
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    status, _, err = run(capsys, "train", "--config", "x.yaml")
    assert status == 2 and "'tokenizer' cannot be given here" in err
    text = run_text({"method": "lora", **setup("lora"), "dtype": object()}, {}, "x")
    (folder / "x.yaml").write_text(text, encoding="utf-8")
    status, _, err = run(capsys, "train", "--config", "x.yaml")
    assert status == 2 and "has no form in a file" in err


def test_rewards_are_named_by_file_by_module_or_with_arguments(folders):
    from main.cli.rewards import functions

    folder = folders("one")
    (folder / "own.py").write_text("def mine(completions, **columns):\n    return [1.0]\n")
    by_file, shipped, made = functions(["own.py:mine", "reward_len", {"fields_reward": "|"}])
    assert by_file([]) == [1.0] and shipped.__name__ == "reward_len" and callable(made)
    assert functions("own:mine")([]) == functions("own.mine")([]) == [1.0]
    for name, told in (
        ("own.py:other", "has no function 'other'"),
        ("none.py:mine", "there is no file 'none.py'"),
        ("none:mine", "cannot be imported"),
        ({"fields_reward": {"sep": 1}}, "does not take these arguments"),
        (3, "must be a name"),
    ):
        with pytest.raises((ConfigError, FileNotFoundError), match=told):
            functions(name)


def test_an_epochs_line_breaks_at_80_columns_and_begins_with_the_loss():
    train = {"grad_norm": 1.0, **{f"a_long_name_of_a_metric/{i}": 0.123456 for i in range(5)}}
    lines = line(EpochResult(2, train | {"loss": 0.5}, {"loss": 0.25}, None, 7)).splitlines()
    assert lines[0].startswith("epoch 2, step 7: loss 0.5, grad_norm 1, a_long")
    assert max(map(len, lines)) <= 80 and lines[-1].endswith("eval loss 0.25")


@pytest.mark.slow
def test_ctrl_c_ends_with_130_a_checkpoint_and_a_clean_log(folders):
    folder = folders("one")
    words = flags(**setup("lora"), **(CALL | {"num_epochs": 10_000}))
    process = start(folder, "train", "lora", *words)
    assert process.stdout and process.stdout.readline().startswith("epoch 1, step 2: loss")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.endswith("main-peft: interrupted\n")
    assert "Traceback" not in err and "holds the run" in err
    assert not set("\r\x1b") & set(out + err)
    assert list(folder.glob("save_model/t/Llama_*/trainer_state"))


@pytest.mark.slow
def test_what_fails_later_is_one_message_with_status_1(folders):
    folder = folders("one")
    process = start(folder, "train", "lora", *flags(**setup("lora"), resume_from_checkpoint="no"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err and out == ""
    assert "main-peft: " in err and "'no'" in err


@pytest.mark.distributed
def test_accelerate_launches_the_command_on_two_processes(folders, capsys):
    folder = folders("two")
    values = {"method": "lora", **setup("lora"), **CALL, "batch_size": 2}
    (folder / "x.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    words = ("train", "lora", "--config", "x.yaml")
    done = launchers.launch("main", *words, options=("-m",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 1, step") == 1
    folders("one")
    status, out, _ = run(capsys, "train", "lora", *flags(**setup("lora"), **CALL))
    assert status == 0
    losses = [
        [float(text.split("loss ")[1].split(",")[0]) for text in printed.splitlines()
         if text.startswith("epoch")]
        for printed in (done.stdout, out)
    ]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) == 2
