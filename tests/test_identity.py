"""A run is its content: what else is given on resume is refused by name, and paths do not count."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import torch
from datasets import Dataset
from tiny_task import ListRows, TinyTask, make_rows, same
from transformers import LlamaForCausalLM

from main.errors import CheckpointError, ConfigError
from main.loaders.digest import rows_digest
from main.models import LoraOptions
from main.trainer.arguments import LoopOptions
from main.trainer.dpo.options import PreferenceOptions, PreferenceSetup
from main.trainer.grpo.options import GRPOOptions, GRPOSetup
from main.trainer.loop import identity
from main.trainer.loop.optimizer import make_optimizer
from main.trainer.lora import SupervisedSetup, Trainer
from main.trainer.ppo.options import PPOOptions, PPOSetup

OPTIONS: dict[str, Any] = {"num_epochs": 2, "save_strategy": "epoch"}
CLASSES = (
    SupervisedSetup,
    PreferenceSetup,
    GRPOSetup,
    PPOSetup,
    PreferenceOptions,
    GRPOOptions,
    PPOOptions,
)


def first_epoch(folder: Path, task: TinyTask | None = None, **changes: Any) -> None:
    run = (task or TinyTask(make_rows(6))).start(folder, **(OPTIONS | changes))
    next(run)
    run.close()


def resume(folder: Path, task: TinyTask | None = None, seed: int = 7, **changes: Any) -> TinyTask:
    task = task or TinyTask(make_rows(6))
    options = OPTIONS | {"resume_from_checkpoint": "auto"} | changes
    list(task.start(folder, seed, **options))
    return task


# -- the lists


def test_the_lists_name_options_that_there_are_and_none_twice():
    fields = {field.name for kind in CLASSES for field in dataclasses.fields(kind)}
    lists = identity.BY_CONTENT, identity.COMPUTED, identity.MAY_CHANGE, identity.APPLIED
    named = [name for names in lists for name in names]
    assert len(named) == len(set(named))
    assert set(named) <= fields
    # All of an adapter that its content says; how its start was made is an option of the run.
    adapter = {field.name for field in dataclasses.fields(LoraOptions)}
    assert adapter - set(identity.BY_CONTENT) == {"init_lora_weights"}


OTHER: dict[str, tuple[Any, str]] = {
    "gradient_accumulation_steps": (2, "rows_per_step: 4 then, 8 now"),
    "max_grad_norm": (0.5, "max_grad_norm: 1.0 then, 0.5 now"),
    "adam_betas": ((0.9, 0.99), r"adam_betas: \[0.9, 0.999\] then, \[0.9, 0.99\] now"),
    "adam_epsilon": (1e-6, "adam_epsilon: 1e-08 then, 1e-06 now"),
    "bf16": (True, "bf16: False then, True now"),
    "fp16": (True, "fp16: False then, True now"),
    "group_by_length": (False, "group_by_length: True then, False now"),
    "metric_for_best_model": ("ppl", "metric_for_best_model: loss then, ppl now"),
    "greater_is_better": (True, "greater_is_better: False then, True now"),
}
CHANGES: dict[str, tuple[Any, str]] = {
    "lr": (1e-3, "lr: 0.01 then, 0.001 now"),
    "weight_decay": (0.1, "weight_decay: 0.0 then, 0.1 now"),
    "lr_scheduler_type": ("linear", "lr_scheduler_type: cosine then, linear now"),
    "warmup_ratio": (0.5, "warmup_ratio: 0.03 then, 0.5 now"),
    "warmup_steps": (2, "warmup_steps: None then, 2 now"),
}


def test_every_option_of_a_call_is_in_a_list_or_refused(tmp_path):
    first_epoch(tmp_path)
    known = {field.name for field in dataclasses.fields(LoopOptions)}
    assert known - {*identity.COMPUTED, *identity.MAY_CHANGE} == {
        *OTHER, *CHANGES
    } - {"gradient_accumulation_steps"}  # fmt: skip
    for name, (value, message) in (OTHER | CHANGES).items():
        with pytest.raises(CheckpointError, match=message):
            resume(tmp_path, **{name: value})


def test_other_rows_in_another_order_are_refused_with_both_digests(tmp_path):
    first_epoch(tmp_path)
    rows = make_rows(6)
    for other in (ListRows(reversed(rows)), make_rows(6, seed=1)):
        with pytest.raises(CheckpointError, match=r"rows: 6 of .* then, 6 of .* now"):
            resume(tmp_path, TinyTask(other))
    with pytest.raises(CheckpointError, match="evaluated rows: none then, 2 of"):
        resume(tmp_path, TinyTask(rows, make_rows(2)))
    with pytest.raises(CheckpointError, match="seed: 7 then, 8 now"):
        resume(tmp_path, seed=8)


# -- lr, weight decay and schedule


def test_a_change_that_is_meant_is_applied_from_there_and_said(tmp_path, caplog, monkeypatch):
    """The rates are those that a run has at this step that had the new values from its start."""
    optimizers, rates = [], []

    def make(*args: Any) -> torch.optim.Optimizer:
        optimizers.append(make_optimizer(*args))
        return optimizers[-1]

    class Watched(TinyTask):
        def collate(self, rows):
            groups = optimizers[-1].param_groups
            rates.append([(group["lr"], group["weight_decay"]) for group in groups])
            return super().collate(rows)

    monkeypatch.setattr("main.trainer.loop.opening.make_optimizer", make)
    new: dict[str, Any] = {
        "lr": 3e-3,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.3,
        "num_epochs": 4,
    }
    list(Watched(make_rows(6)).start(tmp_path / "whole", **(OPTIONS | new)))
    expected = rates[2:]
    first_epoch(tmp_path / "part")
    rates.clear()
    with caplog.at_level(logging.WARNING):
        resume(tmp_path / "part", Watched(make_rows(6)), resume_changes="apply", **new)
    assert rates == expected and len(rates) == 6
    assert "lr: 0.01 then, 0.003 now; weight_decay: 0.0 then, 0.3 now" in caplog.text
    assert "of a run of 4 steps, and this one has 8" in caplog.text


def test_a_longer_run_follows_the_schedule_of_its_own_length(tmp_path):
    first_epoch(tmp_path)
    run = TinyTask(make_rows(6)).start(
        tmp_path, **(OPTIONS | {"num_epochs": 4, "resume_from_checkpoint": "auto"})
    )
    # After 4 of 8 steps, 1 of them warm-up: cosine at 3/7 of its half turn.
    assert next(run).train["lr"] == pytest.approx(1e-2 * 0.6113, rel=1e-3)
    run.close()


def test_to_apply_without_a_checkpoint_is_refused():
    with pytest.raises(ConfigError, match="resume_changes='apply' changes nothing with resume_"):
        TinyTask(make_rows(2)).start(Path(), resume_changes="apply")


# -- what may change


def test_what_only_computes_records_and_saves_may_change_and_the_numbers_stay(tmp_path):
    whole = TinyTask(make_rows(6))
    list(whole.start(tmp_path / "whole", **OPTIONS))
    first_epoch(tmp_path / "part")
    moved = tmp_path / "elsewhere" / "part"
    moved.parent.mkdir()
    shutil.move(tmp_path / "part", moved)
    changes: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "logging_steps": 1,
        "eval_strategy": "no", "non_finite": "skip", "progress": False,
    }  # fmt: skip
    assert same(resume(moved, **changes), whole)


# -- the four trainers


@pytest.fixture
def data(own_folder):
    four_trainers.write_data(own_folder, 4, 2)


def start(method: str, model: Path, resumed: bool, setup: dict, options: dict) -> Any:
    setup = {"batch_size": 8, "max_length": 64, "output_dir": "runs", "lora_r": 4} | setup
    trainer = four_trainers.make_trainer(method, model, **setup)
    options = {"eval_strategy": "no", "save_strategy": "epoch", "num_epochs": 2, **options}
    if resumed:
        options["resume_from_checkpoint"] = "auto"
    return four_trainers.run(trainer, method, **options)


def another_base(model: Path, scale: float = 1.0) -> Path:
    """A base of the same shapes; one value of one tensor, its last, is another."""
    other = LlamaForCausalLM.from_pretrained(model)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[-1, -1] += scale
    other.save_pretrained("other")
    for file in Path(model).glob("*token*"):
        shutil.copy(file, "other")
    shutil.copy(Path(model) / "chat_template.jinja", "other")
    return Path("other")


OF_ALL: dict[str, tuple[dict, dict, str]] = {
    "alpha": ({"lora_alpha": 64}, {}, "lora_alpha: 32 then, 64 now"),
    "scale": ({"use_rslora": True}, {}, "use_rslora: None then, True now"),
    "layers": ({"target_modules": ["q_proj"]}, {}, "adapter's weights: .* then, .* now"),
    "start": ({"init_lora_weights": "gaussian"}, {}, "init_lora_weights: True then, gaussian now"),
    "dtype": ({"dtype": "bfloat16"}, {}, "base's dtype: float32 then, bfloat16 now"),
}
OF_ONE: dict[str, list[tuple[dict, dict, str]]] = {
    "lora": [({"lora_dropout": 0.1}, {}, r"lora_dropout: \[0.0\] then, \[0.1\] now")],
    "dpo": [
        ({}, {"beta": 0.3}, "beta: 0.1 then, 0.3 now"),
        ({}, {"loss_type": "ipo"}, "loss_type: sigmoid then, ipo now"),
        ({}, {"sft_weight": 0.1}, "sft_weight: None then, 0.1 now"),
    ],
    "ppo": [
        ({"critic": "head"}, {}, "critic: detached then, head now"),
        ({}, {"kl_coef": 0.2}, "kl_coef: 0.05 then, 0.2 now"),
        ({}, {"temperature": 0.7}, "temperature: 1.0 then, 0.7 now"),
        ({}, {"reward_func": len}, r"reward_func: letters then, len now"),
    ],
    "grpo": [
        ({}, {"loss_type": "dr_grpo"}, "loss_type: dapo then, dr_grpo now"),
        ({}, {"beta": 0.2}, "beta: 0.1 then, 0.2 now"),
        ({}, {"max_completion_length": 4}, "max_completion_length: 5 then, 4 now"),
    ],
}


@pytest.mark.parametrize("method", four_trainers.METHODS)
def test_another_base_adapter_rows_or_option_is_refused_with_both_values(
    data, tiny_model_path, method
):
    run = start(method, tiny_model_path, False, {}, {})
    next(run)
    run.close()
    alike = [OF_ALL["alpha"]] if method in ("dpo", "ppo") else list(OF_ALL.values())
    for setup, options, message in [*alike, *OF_ONE[method]]:
        with pytest.raises(CheckpointError, match=message):
            next(start(method, tiny_model_path, True, setup, options))
    with pytest.raises(CheckpointError, match=r"base: [0-9a-f]{16} then, [0-9a-f]{16} now"):
        next(start(method, another_base(tiny_model_path), True, {}, {}))
    rows = Path(f"{method}_train.jsonl").read_text(encoding="utf-8").splitlines()
    Path(f"{method}_train.jsonl").write_text("\n".join(reversed(rows)), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"rows: \d of .* then, \d of .* now"):
        next(start(method, tiny_model_path, True, {}, {}))


def test_paths_and_spellings_are_no_part_of_a_run_and_are_told(data, tiny_model_path, caplog):
    run = start("lora", tiny_model_path, False, {}, {})
    next(run)
    run.close()
    shutil.copytree(tiny_model_path, "moved")
    Path("rows").mkdir()
    for split in ("train", "dev"):
        lines = Path(f"lora_{split}.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        Path(f"rows/{split}.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    trainer = Trainer(
        from_pretrained="moved",
        data_path={split: f"rows/{split}.json" for split in ("train", "dev")},
        max_length=64, batch_size=4, lora_r=4, task_name="lora", output_dir="runs",
    )  # fmt: skip
    changes = {"gradient_accumulation_steps": 2, "resume_from_checkpoint": "auto"}
    with caplog.at_level(logging.WARNING, logger="main"):
        (result,) = four_trainers.run(trainer, "lora", eval_strategy="no", **changes)
    assert result.epoch == 2
    assert f"from_pretrained: {tiny_model_path} then, moved now" in caplog.text


# -- the digest of rows


def test_a_digest_of_rows_sees_every_value_and_their_order_but_not_how_they_are_kept(tmp_path):
    def digest(rows: list[dict], **features: Any) -> str:
        return rows_digest(Dataset.from_list(rows, **features))

    rows: list[dict[str, Any]] = [
        {"ids": [1, 2, 3], "mask": [False, True, True], "text": "a", "answers": [[1], [2, 3]]},
        {"ids": [4], "mask": [True], "text": "b", "answers": [[4, 5]]},
    ]
    own = digest(rows)
    assert digest(rows * 1) == own
    longer = [dict(rows[0]), dict(rows[1])]
    changes: list[tuple[str, Any]] = [
        ("ids", [1, 2, 4]), ("mask", [True, True, True]), ("text", "ab"),
        ("answers", [[1, 2], [3]]),
    ]  # fmt: skip
    for name, value in changes:
        longer[0] = rows[0] | {name: value}
        assert digest(longer) != own, name
    assert digest(rows[::-1]) != own
    assert digest(rows[:1]) != own
    parts = Dataset.from_list(rows[:1]), Dataset.from_list(rows[1:])
    from datasets import Features, List, Value, concatenate_datasets

    assert rows_digest(concatenate_datasets(parts)) == own
    small = Features({
        "ids": List(Value("int32")), "mask": List(Value("bool")), "text": Value("large_string"),
        "answers": List(List(Value("int16"))),
    })  # fmt: skip
    assert digest(rows, features=small) == own


def test_of_an_image_the_content_counts_and_not_the_place(tmp_path):
    def digest(path: Path) -> str:
        images = json.dumps([{"kind": "image", "source": str(path)}])
        return rows_digest(Dataset.from_list([{"images": images}, {"images": ""}]))

    one, two = tmp_path / "one.png", tmp_path / "two.png"
    one.write_bytes(b"\x01" * 9000)
    two.write_bytes(b"\x01" * 9000)
    assert digest(one) == digest(two)
    two.write_bytes(b"\x01" * 8999 + b"\x02")
    assert digest(one) != digest(two)
