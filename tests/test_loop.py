"""The loop, with a task of two layers: steps, accumulation, records, stops, resume."""

import csv
import gc
import itertools
import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradients import gradient
from tiny_task import TinyTask, make_rows
from torch.optim.optimizer import register_optimizer_step_pre_hook

from main.errors import CheckpointError, ConfigError, DiskError, TrainingError
from main.trainer.arguments import LoopOptions
from main.trainer.loop import saving
from main.trainer.loop.home import Home
from main.trainer.loop.optimizer import make_optimizer
from main.trainer.loop.task import LossOutput, Update
from main.trainer.loop.throughput import MEASURED


def train(task, tmp_path, **options):
    return list(task.start(tmp_path, **options))


def assert_equal_adapters(a, b, exact=True):
    assert a.keys() == b.keys() and a
    for name in a:
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(a[name], b[name], msg=name, **tolerance)


def reference_gradient(task, rows):
    """One row at a time, full logits, sum of -log p divided by all trained tokens at the end."""
    model = task.model.model
    total, tokens = torch.zeros(()), 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        log_p = model(input_ids=ids).logits[0].log_softmax(-1)
        for t in range(1, len(row["input_ids"])):
            if row["loss_mask"][t]:
                total = total - log_p[t - 1, ids[0, t]]
                tokens += 1
    loss = total / tokens
    loss.backward()
    grads = {n: gradient(p).clone() for n, p in task.model.named_parameters() if p.requires_grad}
    task.model.zero_grad(set_to_none=True)
    return loss.item(), grads


class GradientSpy(TinyTask):
    """Remembers the gradient of the first optimizer step."""

    def start(self, *args, **kwargs):
        self.first: dict[str, torch.Tensor] | None = None

        def hook(optimizer, arguments, options):
            if self.first is None:
                named = self.model.named_parameters()
                self.first = {n: gradient(p).clone() for n, p in named if p.requires_grad}

        handle = register_optimizer_step_pre_hook(hook)
        try:
            yield from super().start(*args, **kwargs)
        finally:
            handle.remove()


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (4, 2), (1, 8), (3, 3)])
def test_the_step_is_the_same_however_it_is_cut_and_equals_one_row_at_a_time(
    tmp_path, batch_size, accumulation
):
    rows = make_rows(8)
    task = GradientSpy(rows, batch_size=batch_size)
    loss, grads = reference_gradient(task, rows)
    options = {"num_epochs": 1, "gradient_accumulation_steps": accumulation, "max_grad_norm": 0}
    result = train(task, tmp_path, **options)[-1]
    assert result.step == 1
    assert result.train["loss"] == pytest.approx(loss, rel=1e-5)
    assert_equal_adapters(task.first, grads, exact=False)


def test_the_loss_falls_every_adapter_weight_moves_and_the_base_stays(tmp_path):
    task = TinyTask(make_rows(4))
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    results = train(task, tmp_path, num_epochs=40, lr=3e-2)
    assert results[-1].train["loss"] < results[0].train["loss"] - 0.1
    for name, parameter in task.model.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == ("lora_" in name), name


def test_an_epoch_result_has_plain_floats_and_counts_epochs_and_steps(tmp_path):
    results = train(TinyTask(make_rows(10), make_rows(5, 1)), tmp_path, num_epochs=2)
    assert [(r.epoch, r.step) for r in results] == [(1, 3), (2, 6)]
    for result in results:
        assert set(result.train) == {"loss", "grad_norm", "lr", "tokens_per_second", "peak_memory"}
        assert set(result.eval) == {"loss"} and result.checkpoint is None
        assert all(type(v) is float for v in [*result.train.values(), *result.eval.values()])


def test_nothing_is_trained_before_the_first_next(tmp_path):
    task = TinyTask(make_rows(8))
    before = task.adapter()
    generator = task.start(tmp_path)
    assert_equal_adapters(task.adapter(), before)
    generator.close()


def test_evaluation_counts_every_row_once_and_disturbs_nothing(tmp_path):
    rows, held_out = make_rows(9), make_rows(7, 3)
    task = TinyTask(rows, held_out, batch_size=4, dropout=0.3)
    plain = TinyTask(rows, None, batch_size=4, dropout=0.3)
    with_eval = train(task, tmp_path / "a", num_epochs=2)
    train(plain, tmp_path / "b", num_epochs=2)
    assert_equal_adapters(task.adapter(), plain.adapter())
    task.model.eval()
    loss, _ = reference_gradient(task, held_out)
    assert with_eval[-1].eval["loss"] == pytest.approx(loss, rel=1e-5)
    assert task.model.training is False


def test_the_learning_rate_warms_up_over_its_share_of_all_steps_and_ends_at_zero(tmp_path):
    options = {"logging_steps": 1, "warmup_ratio": 0.25, "lr": 0.1, "num_epochs": 2}
    train(TinyTask(make_rows(16)), tmp_path, lr_scheduler_type="linear", **options)
    with open(tmp_path / "data_record/tiny/train.csv") as file:
        lr = [float(row["lr"]) for row in csv.DictReader(file)]
    # 8 steps, 2 of warm-up: rates after the steps 0.05, 0.1, then down by 0.1 / 6 each
    expected = [0.05, 0.1, *(0.1 * (6 - i) / 6 for i in range(1, 7))]
    assert lr == pytest.approx(expected)


def test_the_last_partial_step_counts_in_full(tmp_path):
    results = train(TinyTask(make_rows(5), batch_size=2), tmp_path, num_epochs=1)
    assert results[0].step == 3
    task = TinyTask(make_rows(5), batch_size=2)
    train(task, tmp_path, num_epochs=1, gradient_accumulation_steps=2)
    assert sorted(itertools.chain.from_iterable(task.seen)) == [1, 2, 3, 4, 5]


def test_breaking_out_releases_signal_handlers_and_the_model(tmp_path):
    task = TinyTask(make_rows(8))
    before = signal.getsignal(signal.SIGINT)
    for _ in task.start(tmp_path, report_to="tensorboard"):
        assert signal.getsignal(signal.SIGINT) is before
        break
    assert signal.getsignal(signal.SIGINT) is before
    assert type(task.model).__name__ == "LogprobModel"
    assert train(task, tmp_path, num_epochs=1)[0].epoch == 1


class Stopping(TinyTask):
    """Raises or sends itself a signal at a given computed micro-batch."""

    at = 0
    how: Callable[[], Any]

    def loss(self, tensors, totals):
        self.at -= 1
        if self.at == 0:
            self.how()
        return super().loss(tensors, totals)


def test_ctrl_c_leaves_a_checkpoint_from_which_auto_goes_on_bit_equal(tmp_path):
    options = {"num_epochs": 3, "save_strategy": "epoch"}
    whole = TinyTask(make_rows(12), dropout=0.2)
    expected = train(whole, tmp_path / "whole", **options)

    stopped = Stopping(make_rows(12), dropout=0.2)
    stopped.at, stopped.how = 5, lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path, **options)
    assert (tmp_path / "save_model/tiny/Llama_5").is_dir()

    resumed = TinyTask(make_rows(12), dropout=0.2)
    results = train(resumed, tmp_path, resume_from_checkpoint="auto", **options)
    assert [r.epoch for r in results] == [2, 3]
    assert_equal_adapters(resumed.adapter(), whole.adapter())
    for ours, theirs in zip(results, expected[1:], strict=True):
        assert ours.train["loss"] == theirs.train["loss"]


def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path):
    def twice():  # one after the other: two that are under way become one
        handler: Any = signal.getsignal(signal.SIGINT)
        guard = handler.__self__
        signal.raise_signal(signal.SIGINT)
        wait(lambda: guard.received is not None)
        signal.raise_signal(signal.SIGINT)
        wait(lambda: False)  # the step would go on after that

    def wait(until):
        end = time.monotonic() + 10
        while not until() and time.monotonic() < end:
            time.sleep(0.01)

    stopped = Stopping(make_rows(12))
    stopped.at, stopped.how = 2, twice
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path, save_strategy="epoch")
    assert not list((tmp_path / "save_model").rglob("Llama_*"))
    assert signal.getsignal(signal.SIGINT) is before


def test_weight_decay_spares_biases_norms_and_magnitudes():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    decayed, spared = make_optimizer(model, LoopOptions(weight_decay=0.1)).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_a_checkpoint_that_brings_code_or_is_damaged_is_refused(tmp_path):
    (tmp_path / "trainer_state").mkdir()
    torch.save(Exploding(), tmp_path / "trainer_state" / "weights.pt")
    with pytest.raises(CheckpointError, match=r"weights\.pt cannot be read: it names .*run code"):
        saving.load_tensors(tmp_path, "weights.pt")
    (tmp_path / "trainer_state" / "weights.pt").write_bytes(b"PK half a file")
    with pytest.raises(CheckpointError, match=r"weights\.pt cannot be read"):
        saving.load_tensors(tmp_path, "weights.pt")


class Exploding:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of a checkpoint was run')",))


def logged(run):
    with open(run / "data_record/tiny/train.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows]


@pytest.mark.parametrize("crash_at", [3, 4, 6, 8])
def test_a_crash_at_any_step_resumes_bit_equal_with_accumulation(tmp_path, crash_at):
    options = {
        "num_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "logging_steps": 1,
    }

    def task(kind=TinyTask):
        return kind(make_rows(13), make_rows(4, 1), batch_size=2, dropout=0.2)

    whole = task()
    train(whole, tmp_path / "whole", **options)

    def die():
        raise RuntimeError("power cut")

    dying = task(Stopping)
    dying.at, dying.how = 2 * crash_at, die
    with pytest.raises(RuntimeError, match="power cut"):
        train(dying, tmp_path / "part", **options)
    torch.manual_seed(99)
    resumed = task()
    train(resumed, tmp_path / "part", resume_from_checkpoint="auto", **options)
    assert_equal_adapters(resumed.adapter(), whole.adapter())
    records = [logged(tmp_path / run) for run in ("whole", "part")]
    assert records[0] == records[1]


def test_auto_without_a_checkpoint_starts_afresh_and_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        results = train(
            TinyTask(make_rows(4)), tmp_path, num_epochs=1, resume_from_checkpoint="auto"
        )
    assert len(results) == 1 and "starting afresh" in caplog.text


def test_a_finished_run_yields_nothing_and_says_so(tmp_path, caplog):
    options = {"num_epochs": 2, "save_strategy": "epoch"}
    train(TinyTask(make_rows(4)), tmp_path, **options)
    with caplog.at_level(logging.WARNING):
        results = train(TinyTask(make_rows(4)), tmp_path, resume_from_checkpoint="auto", **options)
    assert results == [] and "finished run" in caplog.text


def test_resuming_with_other_rows_is_refused_with_both_numbers(tmp_path):
    options = {"num_epochs": 2, "save_strategy": "epoch"}
    train(TinyTask(make_rows(4)), tmp_path, **options)
    with pytest.raises(CheckpointError, match=r"rows: 4 of .* then, 6 of .* now"):
        train(TinyTask(make_rows(6)), tmp_path, resume_from_checkpoint="auto", **options)


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    class Worsening(TinyTask):
        calls = 0

        def evaluate(self, rows, device):
            Worsening.calls += 1
            return {"loss": (float(Worsening.calls), 1)}

    options = {"num_epochs": 4, "save_strategy": "epoch", "save_total_limit": 1}
    results = train(Worsening(make_rows(4), make_rows(4)), tmp_path, **options)
    kept = sorted(path.name for path in (tmp_path / "save_model/tiny").iterdir())
    assert kept == ["Llama_1", "Llama_4"]
    assert results[-1].checkpoint.name == "Llama_4"


def test_early_stopping_ends_the_run_after_its_patience(tmp_path):
    class Flat(TinyTask):
        def evaluate(self, rows, device):
            return {"loss": (1.0, 1)}

    task = Flat(make_rows(4), make_rows(4))
    assert len(train(task, tmp_path, num_epochs=9, early_stopping_patience=2)) == 3


def test_an_unknown_metric_for_the_best_model_lists_what_is_evaluated(tmp_path):
    task = TinyTask(make_rows(4), make_rows(4))
    with pytest.raises(ConfigError, match=r"'bleu' is not evaluated; there are \['loss'\]"):
        train(task, tmp_path, metric_for_best_model="bleu")


class NotANumber(TinyTask):
    def loss(self, tensors, totals):
        output = super().loss(tensors, totals)
        self.calls = getattr(self, "calls", 0) + 1
        return output if self.calls != 2 else LossOutput(output.loss * math.nan, {})


def test_a_gradient_that_is_not_finite_stops_and_names_the_rows(tmp_path):
    with pytest.raises(TrainingError, match=r"step 2 of epoch 1: the gradient norm is nan") as info:
        train(NotANumber(make_rows(8)), tmp_path)
    assert "Source rows" in str(info.value) and "non_finite='skip'" in str(info.value)


def test_a_gradient_that_is_not_finite_can_be_skipped(tmp_path, caplog):
    task = NotANumber(make_rows(8))
    train(task, tmp_path, num_epochs=1, non_finite="skip")
    assert "The step is skipped" in caplog.text
    (line,) = (tmp_path / "data_record/tiny/warnings.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line)["warning"].endswith("The step is skipped.")
    assert all(p.isfinite().all() for p in task.adapter().values())


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_step(tmp_path, caplog):
    class SmallMemory(TinyTask):
        def loss(self, tensors, totals):
            if len(tensors["input_ids"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().loss(tensors, totals)

    roomy = TinyTask(make_rows(8), batch_size=8)
    small = SmallMemory(make_rows(8), batch_size=8)
    expected = train(roomy, tmp_path / "a", num_epochs=2)
    results = train(small, tmp_path / "b", num_epochs=2)
    assert [r.step for r in results] == [r.step for r in expected] == [1, 2]
    assert results[-1].train["loss"] == pytest.approx(expected[-1].train["loss"], rel=1e-4)
    assert "at most 2 rows" in caplog.text


def test_out_of_memory_with_one_row_says_what_to_change(tmp_path):
    class NoMemory(TinyTask):
        def loss(self, tensors, totals):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingError, match="gradient_checkpointing=True"):
        train(NoMemory(make_rows(4)), tmp_path)


def test_a_full_disk_at_save_keeps_the_earlier_checkpoint(tmp_path, monkeypatch):
    task = TinyTask(make_rows(4))
    generator = task.start(tmp_path, num_epochs=3, save_strategy="epoch")
    first = next(generator).checkpoint

    def full(directory, name, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "save_tensors", full)
    with pytest.raises(DiskError, match=r"the disk is full .*No space left on device"):
        next(generator)
    folder = tmp_path / "save_model/tiny"
    assert [path.name for path in folder.iterdir()] == [first.name]
    assert saving.candidates(Home(tmp_path, "tiny", "Llama", 7)) == [first]


def test_the_callers_own_random_draws_between_epochs_change_nothing(tmp_path):
    plain, drawn = (TinyTask(make_rows(8), dropout=0.5) for _ in range(2))
    train(plain, tmp_path / "a")
    for _ in drawn.start(tmp_path / "b"):
        torch.rand(17)
    assert_equal_adapters(plain.adapter(), drawn.adapter())


def test_every_loop_option_that_steers_learning_changes_the_result(tmp_path):
    base = TinyTask(make_rows(12))
    train(base, tmp_path / "base", num_epochs=2)
    changes: list[dict[str, Any]] = [
        {"lr": 2e-2},
        {"weight_decay": 0.5},
        {"warmup_ratio": 0.5},
        {"lr_scheduler_type": "constant"},
        {"gradient_accumulation_steps": 2},
        {"max_grad_norm": 0.01, "adam_epsilon": 1.0},
        {"adam_betas": (0.5, 0.9)},
        {"adam_epsilon": 1e-2},
        {"bf16": True},
        {"group_by_length": False},
    ]
    for number, change in enumerate(changes):
        task = TinyTask(make_rows(12))
        train(task, tmp_path / str(number), **({"num_epochs": 2} | change))
        same = all(torch.equal(a, b) for a, b in
                   zip(task.adapter().values(), base.adapter().values(), strict=True))  # fmt: skip
        assert not same, change
        assert all(p.dtype == torch.float32 for p in task.adapter().values())


def test_tensorboard_gets_one_run_directory(tmp_path):
    train(TinyTask(make_rows(8)), tmp_path, report_to=["tensorboard"], logging_steps=1)
    folder = tmp_path / "logs/tensorboard_logs/tiny"
    assert list(folder.glob("events.out.tfevents.*"))


class Rollouts(TinyTask):
    """Two samples a row, two updates a draw, a companion directory, a sample text."""

    samples_per_row = 2
    updates_per_draw = 2

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.companions = {"Critic": lambda folder: (folder / "head").touch()}
        self.events, self.drawn = [], []

    def open(self, run):
        super().open(run)
        self.events.append("open")

    def close(self):
        self.events.append("close")

    def example(self, row, number):
        return {**row, "number": number}

    def updates(self, drawn, step):
        self.drawn.append((step, [[(r["row"], r["number"]) for r in m.items] for m in drawn]))
        yield Update(drawn, {"reward/mean": (6.0, 3)})
        yield Update(drawn)

    def sample_text(self):
        return "| prompt | completion |\n"


def test_a_method_with_rollouts_gets_whole_groups_inner_updates_records_and_companions(tmp_path):
    task = Rollouts(make_rows(6), batch_size=2)
    options = {"num_epochs": 2, "gradient_accumulation_steps": 2, "save_strategy": "epoch"}
    results = train(task, tmp_path, save_total_limit=1, **options)
    assert [r.step for r in results] == [6, 12]  # 3 draws of two rows x two samples, two updates
    assert results[0].train["reward/mean"] == 2.0
    assert [step for step, _ in task.drawn] == [0, 2, 4, 6, 8, 10]
    for _, pieces in task.drawn:
        assert [len(piece) for piece in pieces] == [2, 2]
        rows = {row for piece in pieces for row, _ in piece}
        assert {pair for piece in pieces for pair in piece} == {
            (row, number) for row in rows for number in (0, 1)
        }
    assert task.events == ["open", "close"]
    kept = sorted(path.name for path in (tmp_path / "save_model/tiny").iterdir())
    assert kept == ["Critic_12", "Llama_12"]
    assert "prompt" in (tmp_path / "data_record/tiny/samples_1.md").read_text()


def test_a_method_is_closed_when_the_caller_breaks_out_and_when_it_fails(tmp_path):
    task = Rollouts(make_rows(6), batch_size=2)
    gc.disable()  # closed by the break itself, not by whichever collection comes next
    try:
        for _ in task.start(tmp_path, num_epochs=3):
            break
        assert task.events == ["open", "close"]
    finally:
        gc.enable()

    class Failing(Rollouts):
        def updates(self, drawn, step):
            raise ValueError("a reward function failed")

    task = Failing(make_rows(6), batch_size=2)
    with pytest.raises(ValueError, match="a reward function failed"):
        train(task, tmp_path)
    assert task.events == ["open", "close"]


def test_a_step_that_cannot_hold_whole_groups_is_refused(tmp_path):
    task = Rollouts(make_rows(6), batch_size=3)
    with pytest.raises(ConfigError, match=r"3 completions .* cannot be cut into groups of 2"):
        train(task, tmp_path)


def test_options_are_recorded_by_name_and_handed_to_the_method_as_they_were_given(
    tmp_path, monkeypatch, tiny_model_path
):
    import threading

    from four_trainers import make_trainer, write_data

    from main.models.training_record import arguments_of

    class Judge:
        """Cannot be copied."""

        def __init__(self):
            self.lock = threading.Lock()
            self.calls = 0

        def __call__(self, prompts, **columns):
            self.calls += 1
            return [float(len(prompt[-1]["content"]) % 3) for prompt in prompts]

    monkeypatch.chdir(tmp_path)
    write_data(tmp_path, train=2, dev=2)
    for method in ("ppo", "grpo"):
        judge = Judge()
        trainer = make_trainer(method, tiny_model_path)
        given = {"reward_func": [judge], "max_completion_length": 4, "num_epochs": 1}
        if method == "grpo":
            given["num_generations"] = 2
        task = trainer.task(**given)
        assert arguments_of(task.options)["reward_func"] == [Judge.__qualname__]
        (result,) = trainer(**given)
        assert judge.calls and given["reward_func"] == [judge], method
        assert "reward/mean" in result.train
