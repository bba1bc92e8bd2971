"""Rewards: functions of TRL's form, and what is said when one of them is wrong."""

import asyncio
import functools
import math
from typing import Any

import numpy as np
import pytest
import torch

from main.errors import ConfigError, RewardError
from main.trainer.rewards.functions import Rewards, unique_names
from main.trainer.rewards.notes import TrainerState
from main.trainer.rewards.scoreable import (
    Scoreable,
    as_completion,
    column_names,
    completion_texts,
)


def scoreable(*completions: str, rows=None, **columns) -> Scoreable:
    count = len(completions)
    return Scoreable(
        ["q"] * count,
        list(completions),
        [[1]] * count,
        [{name: values[i] for name, values in columns.items()} for i in range(count)],
        rows or list(range(11, 11 + count)),
    )


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def right(completions, answer):
    return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]


def test_a_reward_is_the_weighted_sum_and_each_mean_is_recorded_by_name():
    rewards = Rewards([length, right], [0.5, 10.0])
    scores = rewards.score(scoreable("ab", "abcd", answer=["ab", "no"]))
    assert scores.rewards.tolist() == [0.5 * 2 + 10 * 1, 0.5 * 4 + 0]
    assert scores.by_function.tolist() == [[2.0, 1.0], [4.0, 0.0]]
    assert scores.names == ["length", "right"]


def test_a_function_that_does_not_apply_is_left_out_of_sum_and_mean():
    def only_long(completions, **kwargs):
        return [5.0 if len(text) > 3 else None for text in completions]

    scores = Rewards([length, only_long]).score(scoreable("ab", "abcd"))
    assert scores.rewards.tolist() == [2.0, 9.0]
    assert scores.by_function[1].tolist() == [4.0, 5.0] and scores.by_function[0, 1].isnan()


def test_a_completion_that_no_function_scores_is_an_error_that_names_the_row():
    def never(completions, **kwargs):
        return [None for _ in completions]

    with pytest.raises(RewardError, match=r"row 11: every reward function \(never\) returned None"):
        Rewards(never).score(scoreable("a"))


def test_async_functions_run_side_by_side_and_also_inside_a_running_event_loop():
    meeting: list[str] = []

    def waits_for_the_other(name):
        async def reward(completions, **kwargs):
            meeting.append(name)
            while len(meeting) < 2:  # ends only if the other one runs meanwhile
                await asyncio.sleep(0.001)
            return [1.0] * len(completions)

        reward.__name__ = name
        return reward

    async def notebook():
        return Rewards([waits_for_the_other("a"), waits_for_the_other("b")]).score(scoreable("x"))

    assert asyncio.run(asyncio.wait_for(notebook(), 20)).rewards.tolist() == [2.0]


def test_a_function_gets_the_columns_it_names_and_with_kwargs_all_of_them():
    seen = {}

    def everything(prompts, completions, trainer_state, log_metric, log_extra, **kwargs):
        seen.update(kwargs)
        return [0.0] * len(completions)

    Rewards([everything, right]).score(scoreable("a", "b", answer=["a", "b"], level=[1, 2]))
    assert seen == {"completion_ids": [[1], [1]], "answer": ["a", "b"], "level": [1, 2]}


def test_a_function_is_told_where_the_run_is_and_what_it_logs_is_recorded():
    """As TRL 1.16 calls it: `trainer_state`, `log_metric`, `log_extra` among the arguments."""

    def noting(completions, trainer_state, log_metric, log_extra, **kwargs):
        log_extra("size", [len(text) for text in completions])
        log_metric("longest", max(len(text) for text in completions))
        return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

    async def noting_too(completions, **kwargs):
        kwargs["log_metric"]("longest", 1)
        return [float(kwargs["trainer_state"].global_step)] * len(completions)

    rewards = Rewards([noting, noting_too], progress=lambda: TrainerState(3, 4))
    scores = rewards.score(scoreable("a", "bcd"))
    assert scores.rewards.tolist() == [3.75, 3.75]
    assert scores.notes.metrics["logged/longest"] == (4.0, 2)
    assert [scores.notes.of(i) for i in range(2)] == [{"size": 1}, {"size": 3}]
    assert "logged/longest" in rewards.score(scoreable("a")).notes.metrics
    assert rewards.score(scoreable("a")).notes.columns == {"size": [1]}  # none of an earlier batch


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (lambda metric, extra: metric("m", math.nan), r"log_metric\('m', nan\).*finite"),
        (lambda metric, extra: extra("size", [1]), r"log_extra\('size', ...\) got 1 values for 2"),
    ],
)
def test_what_cannot_be_logged_is_an_error_that_names_the_function(log, said):
    def noting(completions, log_metric, log_extra):
        log(log_metric, log_extra)
        return [0.0] * len(completions)

    with pytest.raises(RewardError, match=f"'noting' raised ValueError: {said}"):
        Rewards(noting).score(scoreable("a", "b"))


def test_a_field_that_only_some_rows_have_is_none_in_the_others():
    what = scoreable("a", "b")
    what.columns = [{"answer": "a"}, {}]
    assert what.arguments()["answer"] == ["a", None]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([math.nan], r"'bad' returned nan for row 11, expected a finite number"),
        ([1e39], r"'bad' returned 1e\+39 for row 11, expected a finite number of at most"),
        ([math.inf], r"'bad' returned inf for row 11"),
        (["1.0"], r"'bad' returned '1.0' for row 11"),
        ([[1.0]], r"'bad' returned \[1.0\] for row 11"),
        ([1.0, 2.0], r"'bad' returned 2 rewards for 1 completions \(rows \[11\]\)"),
        ([], r"'bad' returned 0 rewards"),
        (1.0, r"'bad' returned float for row 11, expected a list"),
        (None, r"'bad' returned NoneType for row 11"),
    ],
)
def test_what_is_not_a_reward_is_refused_with_function_and_row(returned, said):
    def bad(completions, **kwargs):
        return returned

    with pytest.raises(RewardError, match=said):
        Rewards([length, bad]).score(scoreable("a"))


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor])
def test_lists_arrays_and_tensors_are_rewards(make):
    def reward(completions, **kwargs):
        return make([1.5, 2.5])

    assert Rewards(reward).score(scoreable("a", "b")).rewards.tolist() == [1.5, 2.5]


def test_numpy_and_tensor_scalars_and_booleans_are_numbers():
    def reward(completions, **kwargs):
        return [np.float32(0.5), torch.tensor(2.0), True]

    assert Rewards(reward).score(scoreable("a", "b", "c")).rewards.tolist() == [0.5, 2.0, 1.0]


@pytest.mark.parametrize("is_async", [False, True])
def test_a_function_that_raises_is_named_with_its_rows_and_called_once(is_async):
    seen = []

    def picky(completions, **kwargs):
        seen.append(len(completions))
        return [1.0 / len(text) for text in completions]

    async def async_picky(completions, **kwargs):
        return picky(completions)

    async_picky.__name__ = "picky"
    function = async_picky if is_async else picky
    said = r"'picky' raised ZeroDivisionError.*\(called with rows \[4, 7\]\)"
    with pytest.raises(RewardError, match=said) as error:
        Rewards([length, function]).score(scoreable("a", "", "b", rows=[7, 7, 4]))
    assert isinstance(error.value.__cause__, ZeroDivisionError) and seen == [3]


def test_a_column_of_the_data_set_is_none_for_rows_without_it():
    def look(completions, solution, **columns):
        assert solution == [None]
        return [1.0]

    what = scoreable("a")
    what.names = ["solution"]
    assert Rewards(look).score(what).rewards.tolist() == [1.0]
    rows: list[dict[str, Any]] = [
        {"columns": '{"a": 1}'},
        {"columns": '{"b": 2}', "gold": ["x"], "bad": []},
    ]
    assert column_names(rows) == ["a", "answer", "b", "gold_answers", "bad_answers"]


def test_what_an_async_function_made_once_serves_every_batch():
    """A semaphore belongs to the event loop that first made somebody wait for it."""
    gate = asyncio.Semaphore(1)

    async def judged(completions, **columns):
        async def one(text):
            async with gate:
                await asyncio.sleep(0)
                return float(len(text))

        return await asyncio.gather(*map(one, completions))

    for _ in range(3):  # three batches, the later ones of another run
        assert Rewards(judged).score(scoreable("ab", "a")).rewards.tolist() == [2.0, 1.0]


def test_a_column_that_the_data_does_not_have_is_named():
    with pytest.raises(RewardError, match=r"'right' needs \['answer'\], but row 11 has only"):
        Rewards(right).score(scoreable("a"))


def test_a_field_named_like_an_argument_of_ours_is_refused():
    with pytest.raises(RewardError, match=r"\['completions'\] have names"):
        Rewards(length).score(scoreable("a", completions=["b"]))


@pytest.mark.parametrize(
    ("functions", "weights", "said"),
    [
        (["length"], None, "'length', which is not a function"),
        ([length], [1.0, 2.0], "2 entries for 1 reward functions"),
        ([length], [math.nan], "must be finite numbers"),
    ],
)
def test_what_cannot_be_called_is_refused_at_once(functions, weights, said):
    with pytest.raises(ConfigError, match=said):
        Rewards(functions, weights)


def test_names_are_unique_and_see_through_partial_functions_and_objects():
    class Judge:
        def __call__(self, completions, **kwargs):
            return [0.0]

    functions: list[Any] = [length, functools.partial(length, scale=2), Judge(), length]
    assert unique_names(functions) == ["length", "length_2", "Judge", "length_3"]


def test_no_completion_gives_no_reward():
    scores = Rewards([length, right]).score(Scoreable([], [], [], [], []))
    assert scores.rewards.shape == (0,) and scores.by_function.shape == (0, 2)


def test_completions_are_text_without_special_tokens_in_the_form_of_their_prompt(small_model_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(small_model_path)
    ids = [*tokenizer("Fine, thanks.", add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    (text,) = completion_texts(tokenizer, [ids])
    assert text == "Fine, thanks."
    assert as_completion("How are you?", text) == "Fine, thanks."
    messages = [{"role": "user", "content": "How are you?"}]
    assert as_completion(messages, text) == [{"role": "assistant", "content": "Fine, thanks."}]
