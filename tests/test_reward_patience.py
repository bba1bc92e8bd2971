"""Reward functions that fail, hang or answer late: limits, further attempts, and what is kept."""

import asyncio
import logging
import threading
import time
from pathlib import Path

import pytest
import tiny_grpo
import tiny_ppo
import torch

from main.errors import ConfigError, RewardError
from main.system import waiting
from main.trainer.rewards.calling import Patience
from main.trainer.rewards.functions import Rewards
from main.trainer.rewards.scoreable import Scoreable


def two() -> Scoreable:
    return Scoreable(["q", "q"], ["a", "bcd"], [[1], [2]], [{}, {}], [11, 12])


def scored(functions, **patience) -> list[float]:
    return Rewards(functions, patience=Patience(**patience)).score(two()).rewards.tolist()


class Judge:
    """Fails so often before it answers; keeps what it was asked."""

    __name__ = "judge"

    def __init__(self, failures: int):
        self.failures = failures
        self.asked: list[list[str]] = []

    def __call__(self, completions, log_metric, **kwargs):
        self.asked.append(list(completions))
        log_metric("asked", 1)
        if len(self.asked) <= self.failures:
            raise ConnectionError("busy")
        return [float(len(text)) for text in completions]


def as_async(function):
    async def judge(completions, log_metric, **kwargs):
        return function(completions, log_metric)

    return judge


@pytest.mark.parametrize("wrap", [lambda judge: judge, as_async])
@pytest.mark.parametrize("timeout", [None, 20.0])
def test_a_judge_that_fails_is_asked_again_for_the_whole_batch(wrap, timeout):
    judge, steady = Judge(failures=2), Judge(failures=0)
    rewards = Rewards([wrap(judge), steady], patience=Patience(timeout, retries=2))
    scores = rewards.score(two())
    assert scores.rewards.tolist() == [2.0, 6.0]
    assert judge.asked == [["a", "bcd"]] * 3 and len(steady.asked) == 1
    assert scores.notes.metrics["logged/asked"] == (2.0, 2)  # what failed attempts noted is gone


def test_a_judge_that_fails_too_often_is_named_with_the_number_of_attempts(caplog):
    judge = Judge(failures=3)
    said = r"'judge' raised ConnectionError: busy \(called with rows \[11, 12\], 3 times\)"
    with caplog.at_level(logging.WARNING), pytest.raises(RewardError, match=said):
        scored([judge], retries=2)
    assert [record.getMessage()[-9:] for record in caplog.records] == ["(1 of 2).", "(2 of 2)."]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_over_its_time_is_stopped_waiting_for(is_async):
    begun = []

    def slow(completions, **kwargs):
        begun.append(time.monotonic())
        time.sleep(0.0 if len(begun) > 1 else 30)
        return [1.0, 2.0]

    async def slow_too(completions, **kwargs):
        begun.append(time.monotonic())
        await asyncio.sleep(0.0 if len(begun) > 1 else 30)
        return [1.0, 2.0]

    function = slow_too if is_async else slow
    assert scored([function], timeout=0.2, retries=1) == [1.0, 2.0]
    assert 0.2 <= begun[1] - begun[0] < 10
    begun.clear()
    said = (
        rf"'{function.__name__}' was not done with 2 completions after reward_timeout=0.2 seconds"
    )
    with pytest.raises(RewardError, match=said):
        scored([function], timeout=0.2)


def test_a_coroutine_that_blocks_its_loop_does_not_hang_the_run(monkeypatch):
    monkeypatch.setattr(waiting, "GRACE", 0.1)

    async def blocks(completions, **kwargs):
        time.sleep(1)
        return [1.0, 2.0]

    began = time.monotonic()
    with pytest.raises(RewardError, match="'blocks' was not done with 2 completions"):
        scored([blocks], timeout=0.1)
    assert time.monotonic() - began < 0.9
    time.sleep(1)  # the loop is free again for others


def test_a_timeout_that_a_function_raises_itself_is_its_own():
    def gateway(completions, **kwargs):
        raise TimeoutError("gateway")

    with pytest.raises(RewardError, match="'gateway' raised TimeoutError: gateway"):
        scored([gateway], timeout=20)


def test_functions_with_a_limit_are_called_in_one_thread_batch_after_batch():
    threads = set()

    def where(completions, **kwargs):
        threads.add(threading.get_ident())
        return [0.0, 0.0]

    for _ in range(3):
        scored([where], timeout=20)
    assert len(threads) == 1 and threads != {threading.get_ident()}


def test_what_returns_no_rewards_is_not_asked_again():
    asked = []

    def wrong(completions, **kwargs):
        asked.append(1)
        return [1.0]

    with pytest.raises(RewardError, match="'wrong' returned 1 rewards for 2"):
        scored([wrong], retries=3)
    assert len(asked) == 1


@pytest.fixture
def fails_later():
    """A reward that is out of order from its third batch on, until it is mended."""

    class Flaky:
        __name__ = "flaky"
        batches, mended = 0, False

        def __call__(self, completion_ids, **kwargs):
            self.batches += 1
            if self.batches > 2 and not self.mended:
                raise ConnectionError("no route to the judge")
            return tiny_grpo.early_tokens(completion_ids)

    return Flaky()


RUNS = {
    "grpo": (tiny_grpo.make_trainer, tiny_grpo.RUN),
    "ppo": (tiny_ppo.make_trainer, tiny_ppo.QUICK | {"ppo_epochs": 1}),
}


@pytest.mark.parametrize("method", RUNS)
@pytest.mark.usefixtures("own_folder")
def test_a_run_whose_judge_is_gone_leaves_a_checkpoint_and_goes_on_from_it(
    tiny_model_path, fails_later, method
):
    make, quick = RUNS[method]
    arguments = quick | {"save_strategy": "epoch", "reward_func": fails_later, "num_epochs": 2}

    def train(**changes):
        trainer = make(tiny_model_path, rows=8)
        steps = [result.step for result in trainer(**(arguments | changes))]
        named = trainer.model.named_parameters()
        return steps, {n: p.detach().clone() for n, p in named if p.requires_grad}

    _, expected = train(reward_func=tiny_grpo.early_tokens, save_strategy="no")
    with pytest.raises(RewardError, match="'flaky' raised ConnectionError"):
        train()
    folders = [path.name for path in Path("save_model/demo").glob("Llama_*")]
    assert folders == ["Llama_2"]
    fails_later.mended = True
    steps, found = train(resume_from_checkpoint="auto")
    assert steps[-1] > 2
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("own_folder")
def test_a_judge_that_fails_in_an_evaluation_leaves_a_checkpoint_too(tiny_model_path):
    def flaky(completion_ids, trainer_state, **kwargs):
        if len(completion_ids) == 3:  # the rows of dev.jsonl
            raise ConnectionError
        return tiny_grpo.early_tokens(completion_ids)

    trainer = tiny_grpo.make_trainer(tiny_model_path)
    changes = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "epoch"}
    with pytest.raises(RewardError, match="'flaky' raised ConnectionError"):
        list(tiny_grpo.run(trainer, reward_func=flaky, **changes))
    assert [path.name for path in Path("save_model/demo").glob("Llama_*")] == ["Llama_1"]


@pytest.mark.parametrize(
    ("name", "value"), [("reward_timeout", 0.0), ("reward_timeout", -1.0), ("reward_retries", -1)]
)
@pytest.mark.usefixtures("own_folder")
def test_a_limit_that_cannot_work_is_refused(tiny_model_path, name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}"):
        tiny_grpo.run(tiny_grpo.make_trainer(tiny_model_path), **{name: value})
