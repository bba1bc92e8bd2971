"""Signs that a run goes wrong: each told once, none stops it."""

import json
import logging

import pytest
import torch
from tiny_task import TinyTask, make_rows
from torch import nn

from main.trainer.loop.watch import Memory, Watch


def moving() -> dict[str, nn.Parameter]:
    return {"weight": nn.Parameter(torch.zeros(2))}


def told(records: list[dict[str, float]]) -> list[list[str]]:
    weights = moving()
    watch = Watch(Memory(), weights)
    weights["weight"].data += 1
    return [watch.see(step, metrics) for step, metrics in enumerate(records, 1)]


def test_a_loss_far_above_its_best_is_told_after_three_records_and_once():
    found = told([{"loss": loss} for loss in (2.0, 1.0, 3.1, 3.2, 2.0, 3.1, 4.0, 5.0, 6.0, 7.0)])
    assert [len(signs) for signs in found] == [0] * 7 + [1, 0, 0]
    assert "the loss is 5" in found[7][0] and "3 times its best, 1, for 3 records" in found[7][0]


def test_a_policys_loss_is_no_sign_and_neither_is_a_best_of_0():
    assert not any(told([{"loss": loss, "completion_length": 5.0} for loss in (0.1, 1, 1, 1, 1)]))
    assert not any(told([{"loss": loss} for loss in (0.0, 1, 1, 1, 1)]))


@pytest.mark.parametrize(("lengths", "said"), [((10, 15, 21, 30), "10 to 21"), ((10, 4), "to 4")])
def test_a_length_that_doubles_or_halves_is_told(lengths, said):
    found = told([{"completion_length": float(length)} for length in lengths])
    (sign,) = [text for signs in found for text in signs]
    assert said in sign and "tokens" in sign


def test_an_entropy_that_collapses_and_a_divergence_that_runs_away_are_told():
    base = {"completion_length": 9.0}
    found = told([base | {"entropy": 2.0, "kl": 0.9}, base | {"entropy": 0.25, "kl": 1.5},
                  base | {"entropy": 0.1, "kl": 9.0}])  # fmt: skip
    assert [len(signs) for signs in found] == [0, 1, 1]
    assert "1.5 nats a token away" in found[1][0] and "from 2 to 0.1 nats" in found[2][0]


def test_an_adapter_of_which_no_weight_moves_is_told():
    weights = moving()
    watch = Watch(Memory(), weights)
    assert not watch.see(9, {}) and "no weight" in watch.see(12, {})[0] and not watch.see(13, {})
    weights["weight"].data[1] = 0.5
    fresh = Watch(Memory(), moving())
    fresh.parameters["weight"].data[1] = 0.5
    assert not fresh.see(12, {})


def test_what_was_told_and_seen_goes_on_after_a_resume():
    memory = Memory()
    watch = Watch(memory, {})
    watch.see(1, {"completion_length": 10.0})
    watch.see(2, {"completion_length": 30.0})
    again = Watch(Memory(**json.loads(json.dumps(vars(memory)))), {})
    assert not again.see(3, {"completion_length": 40.0})


@pytest.mark.parametrize(("lr", "strategy"), [(0.0, "steps"), (0.0, "no"), (1e-2, "steps")])
def test_a_run_tells_it_and_goes_on(tmp_path, caplog, lr, strategy):
    task = TinyTask(make_rows(24))
    options = {"num_epochs": 2, "lr": lr, "logging_steps": 2, "logging_strategy": strategy}
    with caplog.at_level(logging.WARNING):
        results = list(task.start(tmp_path, **options))
    signs = [r.getMessage() for r in caplog.records if "no weight of the adapter" in r.message]
    assert results[-1].step == 12 and len(signs) == (0 if lr else 1)
    path = tmp_path / "data_record/tiny/warnings.jsonl"
    kept = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if signs else []
    assert signs == [f"step {line['step']}: {line['warning']}" for line in kept]
    assert path.exists() == bool(signs)
