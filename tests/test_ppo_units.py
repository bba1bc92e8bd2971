"""PPO and GRPO learn whatever the units of the reward, and nothing where there is nothing."""

import json
import math

import pytest
import torch
from byte_policy import multiples_of_four, save_byte_policy, train_grpo, train_ppo

from main.trainer.online.statistics import moments
from main.trainer.ppo.scores import RunningScores, has_spread

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture(scope="module")
def byte_policy(tmp_path_factory):
    return save_byte_policy(tmp_path_factory.mktemp("bytes"))


def measured_in(factor: float, offset: float):
    def reward(completion_ids, **columns):
        return [factor * value + offset for value in multiples_of_four(completion_ids)]

    return reward


def test_the_default_arguments_learn_what_is_rewarded(byte_policy):
    """Of 259 tokens 65 are multiples of 4. Measured: 0.45 after 10 draws, 0.97 after 30."""
    records = train_ppo(byte_policy, multiples_of_four, draws=20)
    assert records[0]["reward/mean"] < 0.3
    assert max(record["reward/mean"] for record in records) > 0.6


@pytest.mark.parametrize(("factor", "offset"), [(1, 20), (1, -80), (100, 0), (0.01, 0)])
def test_the_units_of_the_reward_do_not_matter(byte_policy, factor, offset):
    plain = train_ppo(byte_policy, multiples_of_four, draws=4)
    other = train_ppo(byte_policy, measured_in(factor, offset), draws=4)
    for ours, theirs in zip(plain, other, strict=True):
        expected = factor * ours["reward/mean"] + offset
        assert theirs["reward/mean"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        for name in ("loss", "loss/value", "grad_norm", "entropy"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-2, abs=1e-4), name


def test_grpo_learns_what_is_rewarded_with_its_default_arguments(byte_policy):
    """Measured: 0.46 after 10 draws, 0.61 after 20, 0.81 after 30."""
    records = train_grpo(byte_policy, multiples_of_four, draws=20)
    assert records[0]["reward/mean"] < 0.3
    assert max(record["reward/mean"] for record in records) > 0.5


@pytest.mark.parametrize(("factor", "offset"), [(1, 20), (100, 0)])
@pytest.mark.parametrize("kind", ["sum_then_normalize", "normalize_then_sum"])
def test_the_units_of_the_reward_do_not_matter_in_grpo(byte_policy, factor, offset, kind):
    """Up to the 1e-4 that is added to a standard deviation: 0.2 % of one of 0.05."""
    options = {"draws": 4, "multi_objective_aggregation": kind}
    plain = train_grpo(byte_policy, multiples_of_four, **options)
    other = train_grpo(byte_policy, measured_in(factor, offset), **options)
    for ours, theirs in zip(plain, other, strict=True):
        expected = factor * ours["reward/mean"] + offset
        assert theirs["reward/mean"] == pytest.approx(expected, rel=1e-6, abs=1e-6)
        for name in ("loss", "grad_norm", "entropy"):
            assert theirs[name] == pytest.approx(ours[name], rel=2e-2, abs=1e-4), name


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1])
def test_a_constant_reward_moves_nothing_in_grpo(byte_policy, value):
    records = train_grpo(byte_policy, lambda prompts, **_: [value] * len(prompts), draws=3)
    assert all(record["loss"] == record["grad_norm"] == 0 for record in records)


def test_a_constant_reward_moves_nothing(byte_policy):
    records = train_ppo(byte_policy, lambda prompts, **columns: [1.0] * len(prompts), draws=6)
    for record in records:
        assert record["loss"] == record["grad_norm"] == record["loss/value"] == 0
        assert record["entropy"] == pytest.approx(records[0]["entropy"], rel=0.02)


def test_running_scores_are_those_of_all_draws_at_once():
    draws = [torch.tensor([1.0, 4.0]), torch.tensor([7.0]), torch.tensor([0.0, 0.5, 3.0])]
    scores = RunningScores()
    assert scores.normalised(5.0) == 5.0  # nothing to compare with yet
    for draw in draws:
        scores.add(moments([draw]))
    everything = torch.cat(draws).double()
    spread = math.sqrt(float((everything - everything.mean()).square().mean()))
    assert scores.mean == pytest.approx(float(everything.mean()))
    assert scores.spread == pytest.approx(spread)
    assert scores.normalised(7.0) == pytest.approx((7 - float(everything.mean())) / spread)
    again = RunningScores(**json.loads(json.dumps(scores.state())))
    assert again == scores


@pytest.mark.parametrize("value", [0.0, 0.1, -80.7, 1e6])
def test_equal_scores_have_no_spread(value):
    draw = moments([torch.full((32,), value, dtype=torch.float64)])
    scores = RunningScores()
    scores.add(draw)
    assert not has_spread(draw) and scores.normalised(value) == 0
    assert has_spread(moments([torch.tensor([value, value + 0.01], dtype=torch.float64)]))
