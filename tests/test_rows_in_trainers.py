"""Rows as people have them, in the four trainers: mixtures, other libraries' rows, data sets."""

import json
from pathlib import Path
from typing import Any

import datasets
import four_trainers
import pytest
import torch

from main.errors import CheckpointError, ConfigError, DataError
from main.loaders.shares import AGAIN, drawn
from main.trainer.lora import Trainer

METHODS = list(four_trainers.METHODS)


def foreign(method: str) -> list[dict[str, Any]]:
    """The rows of `four_trainers`, as other libraries write them."""
    found = []
    for row in four_trainers.rows(method, 6):
        if method == "lora":
            user, answer = row["conversations"]
            row = {"instruction": user["content"], "output": answer["content"]}
        elif method == "grpo":
            user = row["prompt"][0]["content"]
            row = {"prompt": user, "completion": row["answer"]}
        else:
            user = row["conversations"][0]["content"]
            row = {"prompt": user, "chosen": row["gold_answers"], "rejected": row["bad_answers"]}
            row |= {name: row[name][0] for name in ("chosen", "rejected")}
        found.append(row)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", METHODS)
def test_a_mixture_of_other_libraries_rows_trains_in_every_method(
    method: str, tiny_model_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = foreign(method)
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows[:2])))
    mixture = [{"data": "a.jsonl", "weight": 2.0}, {"data": datasets.Dataset.from_list(rows[2:])}]
    data = {"train": mixture, "dev": rows[:3]}
    trainer = four_trainers.make_trainer(
        method, tiny_model_path, data_path=data, loader_name="auto", batch_size=24
    )
    assert len(trainer.train_data) == 6 and len(trainer.eval_data) == 3
    assert [trainer.train_data[i]["row"] for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert "a.jsonl: 2 rows, weight 2, 4 draws an epoch" in caplog.text
    assert trainer.setup.loader_name in trainer.loaders
    results = list(four_trainers.run(trainer, method))
    assert len(results) == 2 and results[-1].eval
    record = json.loads((results[-1].checkpoint / "training.json").read_text())
    assert record["loader"] == trainer.setup.loader_name
    assert record["setup"]["data_path"]["dev"] == "3 rows"


def lora(model: Path, data: Any, **changes: Any) -> Trainer:
    return Trainer(
        from_pretrained=model, data_path=data, max_length=128, batch_size=2, lora_r=4, **changes
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in trainer.policy.named_parameters() if p.requires_grad}


CALL: dict[str, Any] = {"lr": 1e-2, "report_to": "none", "save_strategy": "steps", "save_steps": 4}


def test_a_mixture_that_was_broken_off_goes_on_bit_for_bit(tiny_model_path: Path) -> None:
    rows = four_trainers.rows("lora", 9)
    mixture = [{"data": rows[:2], "weight": 3}, {"data": rows[2:], "weight": 2}]
    whole = lora(tiny_model_path, mixture, task_name="whole")
    list(whole(num_epochs=2, **CALL))
    again = lora(tiny_model_path, mixture, task_name="again")
    list(again(num_epochs=2, resume_from_checkpoint="save_model/whole/Llama_4", **CALL))
    expected = weights(whole)
    assert all(torch.equal(found, expected[name]) for name, found in weights(again).items())
    # 6 : 4 are the same shares; other ones are another run.
    same = [{"data": rows[:2], "weight": 6}, {"data": rows[2:], "weight": 4}]
    resumed = {"num_epochs": 3, "resume_from_checkpoint": "save_model/whole/Llama_8", **CALL}
    list(lora(tiny_model_path, same, task_name="again")(**resumed))
    other = [{"data": rows[:2], "weight": 1}, {"data": rows[2:], "weight": 2}]
    with pytest.raises(CheckpointError, match=r"9 of \d+ tokens, drawn 5 of 2, 4 of 7"):
        list(lora(tiny_model_path, other, task_name="again")(**resumed))


def test_an_epoch_draws_what_the_shares_say(tiny_model_path: Path) -> None:
    rows = four_trainers.rows("lora", 9)
    trainer = lora(tiny_model_path, [{"data": rows[:2], "weight": 3}, {"data": rows[2:]}])
    seen: list[int] = []
    task = trainer.task(num_epochs=1, report_to="none")
    collate = task.collate
    task.collate = lambda batch: seen.extend(r["row"] for r in batch) or collate(batch)
    from main.trainer.loop.home import Home
    from main.trainer.loop.run import Loop

    list(Loop(task, task.options, Home(Path(), "t", "Llama", 42)).run())
    expected = [row % AGAIN + 1 + row // AGAIN * AGAIN for row in
                drawn(trainer.train_data.shares, 42, 1)]  # fmt: skip
    assert sorted(seen[:9]) == sorted(expected)


def test_the_same_rows_are_the_same_run_wherever_they_come_from(tiny_model_path: Path) -> None:
    rows = four_trainers.rows("lora", 4)
    Path("rows.json").write_text(json.dumps(rows))
    digests = {
        lora(tiny_model_path, data).train_data.digest
        for data in (rows, "rows.json", datasets.Dataset.from_list(rows))
    }
    assert len(digests) == 1


def test_a_tilde_is_the_home_folder_in_every_path(
    tiny_model_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    Path("llama").symlink_to(tiny_model_path)
    Path("rows.json").write_text(json.dumps(four_trainers.rows("lora", 4)))
    trainer = lora(Path("~/llama"), "~/rows.json", output_dir="~/out", task_name="t")
    result = next(iter(trainer(num_epochs=1, report_to="none")))
    assert result.checkpoint and result.checkpoint.is_relative_to(folder / "out")
    lora(
        Path("~/llama"), ["~/rows.json"], resume_path=f"~/out/save_model/t/{result.checkpoint.name}"
    )


def test_what_does_not_fit_the_trainer_is_refused(tiny_model_path: Path) -> None:
    pairs = [{"prompt": "q", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match=r"preferences \(prompt, chosen, rejected\) are not"):
        lora(tiny_model_path, pairs, loader_name="auto")
    plain = [{"context": "c", "target": "t"}]
    with pytest.raises(ConfigError, match="train_turns='last' changes nothing with loader_name"):
        lora(tiny_model_path, plain, loader_name="auto", train_turns="last")
