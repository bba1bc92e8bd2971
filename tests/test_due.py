"""What is due: by crossing, once, in order; how long a run is; and which checkpoint is the best."""

import csv
import logging
from typing import Any

import pytest
from tiny_task import TinyTask, make_rows

from main.errors import ConfigError, MissingExtraError
from main.options import parse
from main.trainer.arguments import LOOP_ALIASES, LoopOptions
from main.trainer.loop import best
from main.trainer.loop.due import Due, Length, due
from main.trainer.loop.state import RunState
from main.trainer.loop.task import Update


def options(**given) -> LoopOptions:
    return parse(LoopOptions, given, "t()", LOOP_ALIASES)


def train(task: TinyTask, folder, **given) -> list:
    return list(task.start(folder, **given))


def recorded(folder, kind: str) -> list[int]:
    path = folder / f"data_record/tiny/{kind}.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def checkpoints(folder) -> list[str]:
    return sorted(path.name for path in (folder / "save_model/tiny").iterdir())


class Scored(TinyTask):
    """Evaluates to the given losses, one after the other, and notes when."""

    losses: tuple[float, ...] = ()

    def evaluate(self, rows, device):
        self.evaluated = [*getattr(self, "evaluated", []), self.run.step]
        return {"loss": (self.losses[len(self.evaluated) - 1], 1)}


def scored(*losses: float, rows: int = 4, batch_size: int = 1) -> Scored:
    task = Scored(make_rows(rows), make_rows(2, 1), batch_size=batch_size)
    task.batch_size_eval = 2
    task.losses = losses
    return task


# -- the rule


def test_a_multiple_that_was_passed_is_due_and_only_then():
    o = options(logging_steps=10, save_strategy="steps", save_steps=4, eval_strategy="no")
    # of a draw with 3 updates: 9 -> 12 passes 10 and 12; 12 -> 15 neither 20 nor 16
    assert due(o, 9, 12, False, False) == Due(log=True, save=True, evaluate=False)
    assert due(o, 12, 15, False, False) == Due(log=False, save=False, evaluate=False)


def test_the_end_of_a_run_is_due_under_every_strategy_but_no():
    o = options(logging_steps=10, save_strategy="steps", save_steps=500, eval_strategy="epoch")
    assert due(o, 4, 5, False, True) == Due(log=True, save=True, evaluate=True)
    none = options(logging_strategy="no", save_strategy="no", eval_strategy="no")
    assert due(none, 4, 5, True, True) == Due(False, False, False)


def test_the_length_of_a_run_by_epochs_their_fractions_and_steps():
    def steps(**given) -> int:
        return Length.of(options(**given), draws=10, updates_per_draw=3).total_steps

    assert steps(num_epochs=2) == 60
    assert steps(num_epochs=0.5) == 15
    assert steps(num_epochs=0.01) == 3  # one draw at least
    assert steps(max_steps=100) == 100  # the three epochs of the default are no limit then
    assert steps(max_steps=100, num_epochs=2) == 60
    assert steps(max_steps=20, num_train_epochs=2) == 20


# -- runs


def test_the_last_window_and_the_last_weights_are_not_lost(tmp_path):
    given = {"logging_steps": 10, "save_strategy": "steps", "save_steps": 500, "num_epochs": 1}
    (result,) = train(TinyTask(make_rows(5), batch_size=1), tmp_path, **given)
    assert recorded(tmp_path, "train") == [5]
    assert checkpoints(tmp_path) == ["Llama_5"] == [result.checkpoint.name]


def test_every_due_one_is_made_once_whatever_a_draw_is_made_into(tmp_path):
    class Three(TinyTask):
        updates_per_draw = 3

        def updates(self, drawn, step):
            for _ in range(3):
                yield Update(drawn)

    task = Three(make_rows(4), make_rows(2, 1), batch_size=1)
    steps = {"save_steps": 10, "eval_steps": 10, "logging_steps": 10}
    strategies = {"save_strategy": "steps", "eval_strategy": "steps"}
    results = train(task, tmp_path, num_epochs=2, **steps, **strategies)
    # 2 epochs of 4 draws x 3 updates; 10 is passed at 12, an epoch's end, 20 at 21; 24 is the end
    assert [result.step for result in results] == [12, 24]
    assert recorded(tmp_path, "train") == recorded(tmp_path, "eval") == [12, 21, 24]
    assert checkpoints(tmp_path) == ["Llama_12", "Llama_21", "Llama_24"]


def test_a_result_has_the_evaluation_of_its_own_step_or_none(tmp_path):
    given = {"eval_strategy": "steps", "eval_steps": 3, "num_epochs": 2}
    first, second = train(scored(3.0, 2.0, 1.0), tmp_path, **given)
    assert recorded(tmp_path, "eval") == [3, 6, 8]
    assert first.step == 4 and first.eval == {}
    assert second.step == 8 and second.eval == {"loss": 1.0}


def test_what_memory_does_not_suffice_to_evaluate_is_saved_all_the_same(tmp_path):
    class Failing(TinyTask):
        def evaluate(self, rows, device):
            raise RuntimeError("the disk of the cache is gone")

    task = Failing(make_rows(4), make_rows(2, 1))
    with pytest.raises(RuntimeError, match="is gone"):
        train(task, tmp_path, save_strategy="epoch", num_epochs=1)
    assert checkpoints(tmp_path) == ["Llama_1"]
    # and the same call again makes the evaluation, and gives the epoch's result
    again = scored(1.5, batch_size=4)
    given = {"save_strategy": "epoch", "num_epochs": 1, "resume_from_checkpoint": "auto"}
    (result,) = train(again, tmp_path, **given)
    assert again.seen == [] and again.evaluated == [1]
    assert (result.epoch, result.eval, result.checkpoint.name) == (1, {"loss": 1.5}, "Llama_1")


def test_early_stopping_looks_at_every_evaluation_inside_an_epoch(tmp_path):
    task = scored(1.0, 1.0, rows=9)
    given = {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 1, "lr": 0.0}
    results = train(task, tmp_path, save_strategy="steps", save_steps=50, num_epochs=3, **given)
    assert [(r.epoch, r.step, r.eval) for r in results] == [(1, 2, {"loss": 1.0})]
    assert recorded(tmp_path, "train") == [2] and checkpoints(tmp_path) == ["Llama_2"]


def test_max_steps_ends_a_run_within_an_epoch_and_a_longer_one_goes_on_there(tmp_path):
    whole = TinyTask(make_rows(6), batch_size=1, dropout=0.2)
    constant = {"lr_scheduler_type": "constant", "save_strategy": "epoch"}
    train(whole, tmp_path / "whole", max_steps=10, **constant)
    task = TinyTask(make_rows(6), batch_size=1, dropout=0.2)
    results = train(task, tmp_path / "part", max_steps=8, **constant)
    assert [(r.epoch, r.step) for r in results] == [(1, 6), (2, 8)]
    assert results[-1].checkpoint.name == "Llama_8"
    more = TinyTask(make_rows(6), batch_size=1, dropout=0.2)
    given = constant | {"resume_from_checkpoint": "auto"}
    assert train(more, tmp_path / "part", max_steps=8, **given) == []
    (last,) = train(more, tmp_path / "part", max_steps=10, **given)
    assert (last.epoch, last.step) == (2, 10)
    for name, value in whole.adapter().items():
        assert value.equal(more.adapter()[name]), name


def test_the_best_checkpoint_is_one_whose_own_weights_were_evaluated(tmp_path):
    """The best evaluation, at step 1, has no checkpoint; of 2 and 4 the former is better."""
    task = scored(0.1, 0.5, 0.7, 0.9)
    given = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    train(task, tmp_path, num_epochs=1, save_total_limit=1, **given)
    assert checkpoints(tmp_path) == ["Llama_2", "Llama_4"]


def test_the_best_weights_are_loaded_when_the_run_has_ended(tmp_path, caplog):
    task = scored(0.5, 0.9)
    given: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    results = []
    for result in task.start(tmp_path, num_epochs=2, load_best_model_at_end=True, **given):
        results.append((result.checkpoint, task.adapter()))
    (_, best_weights), (_, last_weights) = results
    assert all(value.equal(best_weights[name]) for name, value in task.adapter().items())
    assert not all(value.equal(last_weights[name]) for name, value in task.adapter().items())
    assert "the model has the weights of Llama_4, loss=0.5" in caplog.text


def test_patience_counts_evaluations_and_best_counts_checkpoints():
    state, o = RunState(), options()
    for step, (loss, saved) in enumerate([(0.1, False), (0.5, True), (0.3, True)], 1):
        state.evaluation = {"loss": loss}
        best.compare(state, o, saved=_checkpoint(step) if saved else None)
    assert (state.best, state.stale) == (0.1, 2)
    assert (state.best_saved, state.best_checkpoint) == (0.3, "Llama_3")


def _checkpoint(step: int):
    from pathlib import Path

    return Path(f"Llama_{step}")


# -- arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_epochs": 0}, "num_epochs=0 must be above 0"),
        ({"max_steps": 0}, "max_steps=0 must be 1 or more, or None"),
        ({"lr": float("nan")}, "lr=nan must be finite"),
        ({"lr": float("inf")}, "lr=inf must be finite"),
        ({"adam_betas": (0.9, float("nan"))}, "adam_betas=.* must be finite"),
        ({"adam_betas": (0.9, 1.0)}, "adam_betas=.* must be two numbers from 0 to below 1"),
        ({"lr_scheduler_type": "cosin"}, "must be one of .*Did you mean 'cosine'"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "lr_scheduler_type=.* must be one of"),
        ({"report_to": ["tensorbord"]}, "report_to='tensorbord' must be .*Did you mean"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_ratio=0.1 changes nothing with warmup"),
        ({"eval_steps": 5}, "eval_steps=5 changes nothing with eval_strategy='epoch'"),
        ({"save_steps": 5}, "save_steps=5 changes nothing with save_strategy='epoch'"),
        (
            {"early_stopping_patience": 2, "eval_strategy": "no"},
            "early_stopping_patience=2 changes nothing with eval_strategy='no'",
        ),
        (
            {"save_total_limit": 2, "save_strategy": "no"},
            "save_total_limit=2 changes nothing with save_strategy='no'",
        ),
        ({"load_best_model_at_end": True, "save_strategy": "no"}, "needs checkpoints that are eva"),
    ],
)
def test_an_argument_that_cannot_be_honoured_is_refused_at_the_call(given, message):
    with pytest.raises(ConfigError, match=message):
        options(**given)


def test_a_tracker_that_is_not_installed_is_refused_at_the_call():
    with pytest.raises(MissingExtraError, match=r"report_to='aim' needs the package 'aim'"):
        options(report_to=["tensorboard", "aim"])


def test_what_the_guide_shows_is_told_where_it_has_no_effect(caplog):
    with caplog.at_level(logging.WARNING):
        options(logging_steps=20, logging_strategy="epoch")
    assert "logging_steps=20 changes nothing with logging_strategy='epoch'." in caplog.text


def test_a_default_and_none_are_nobodys_words():
    assert options(save_strategy="no", save_total_limit=None).given == {"save_strategy"}


def test_no_learning_rate_and_a_warm_up_by_steps_are_honoured(tmp_path):
    task = TinyTask(make_rows(8), batch_size=2)
    before = task.adapter()
    train(task, tmp_path / "a", lr=0.0, num_epochs=1)
    assert all(value.equal(before[name]) for name, value in task.adapter().items())
    given: dict[str, Any] = {
        "lr": 0.1,
        "warmup_steps": 2,
        "lr_scheduler_type": "constant_with_warmup",
    }
    train(task, tmp_path / "b", num_epochs=1, logging_steps=1, **given)
    with (tmp_path / "b/data_record/tiny/train.csv").open(encoding="utf-8") as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1])
