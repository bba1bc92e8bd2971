"""Advantages: values worked out by hand, and the cases in which nothing can be learnt."""

import pytest
import torch

from main.errors import ConfigError
from main.trainer.grpo.advantages import (
    advantages,
    decoupled_advantages,
    group_advantages,
    leave_one_out_advantages,
    overlong_penalty,
    reinforce_plus_plus_advantages,
    zero_spread,
)

# Row 1: mean 2, deviations (-2, 0, 2), variance (4 + 0 + 4) / (3 - 1) = 4, std 2.
# Row 2: mean 5, deviations (1, -2, 1), variance 6 / 2 = 3. All six: mean 3.5, squares of the
# deviations 12.25 + 2.25 + 0.25 + 6.25 + 0.25 + 6.25 = 27.5, variance 27.5 / 5 = 5.5.
REWARDS = torch.tensor([[0.0, 2.0, 4.0], [6.0, 3.0, 6.0]])


def test_group_advantages_are_divided_by_the_groups_std_with_bessels_correction():
    expected = torch.tensor([[-2 / 2.0001, 0.0, 2 / 2.0001], [1.0, -2.0, 1.0]])
    expected[1] /= 3**0.5 + 1e-4
    torch.testing.assert_close(group_advantages(REWARDS), expected)


def test_without_scale_they_are_differences_and_with_the_batchs_they_share_one_divisor():
    differences = torch.tensor([[-2.0, 0.0, 2.0], [1.0, -2.0, 1.0]])
    torch.testing.assert_close(group_advantages(REWARDS, "none"), differences)
    torch.testing.assert_close(group_advantages(REWARDS, "batch"), differences / (5.5**0.5 + 1e-4))


def test_leave_one_out_compares_with_the_mean_of_the_others():
    # 0 - (2 + 4) / 2 = -3, 2 - (0 + 4) / 2 = 0, 4 - (0 + 2) / 2 = 3; 6 - 4.5, 3 - 6, 6 - 4.5
    expected = torch.tensor([[-3.0, 0.0, 3.0], [1.5, -3.0, 1.5]])
    torch.testing.assert_close(leave_one_out_advantages(REWARDS), expected)


def test_reinforce_plus_plus_normalises_over_the_batch():
    expected = (REWARDS - 3.5) / (5.5**0.5 + 1e-4)
    torch.testing.assert_close(reinforce_plus_plus_advantages(REWARDS), expected)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("kind", ["group", "rloo"])
def test_equal_rewards_give_exactly_zero_also_where_the_mean_is_not_exact(kind, scale):
    # Three times 0.1 does not have the mean 0.1 in floating point.
    result = advantages(torch.tensor([[0.1, 0.1, 0.1], [0.0, 1.0, 0.0]]), kind, scale)
    assert result[0].tolist() == [0.0, 0.0, 0.0]
    assert result[1].abs().min() > 0


@pytest.mark.parametrize("kind", ["group", "rloo", "reinforce++"])
def test_a_batch_of_equal_rewards_teaches_nothing(kind):
    assert advantages(torch.full((2, 3), 0.7), kind).eq(0).all()


def test_the_order_of_groups_and_of_completions_does_not_matter():
    flipped = REWARDS.flip(0, 1)
    for kind in ("group", "rloo", "reinforce++"):
        torch.testing.assert_close(advantages(flipped, kind), advantages(REWARDS, kind).flip(0, 1))


def test_a_scale_that_does_not_exist_for_a_kind_is_refused():
    with pytest.raises(ConfigError, match="'group' does not go with advantage='reinforce"):
        advantages(REWARDS, "reinforce++", "group")


def test_groups_without_spread_are_found():
    assert zero_spread(torch.tensor([[0.1, 0.1], [0.1, 0.2]])).tolist() == [True, False]


def test_the_overlong_penalty_falls_linearly_over_the_last_tokens():
    # limit 100, cache 20: none up to 80, (80 - 90) / 20 at 90, the whole point at 100 and above
    lengths = torch.tensor([1, 80, 90, 100, 120])
    assert overlong_penalty(lengths, 100, 20).tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_rewards_normalised_one_by_one_weigh_alike_whatever_their_spread():
    """Two groups of two; what the sums cannot tell apart: (1, 0) + (0, 1) is (1, 1).

    Group 1: both functions have deviations (0.5, -0.5) and (-5, 5), std 0.5 sqrt(2) and 5 sqrt(2),
    so (1, -1) / sqrt(2) and (-1, 1) / sqrt(2). Group 2: (1, -1) / sqrt(2), and 0 without spread.
    With weights 1 and 2 the sums are (-1, 1, 1, -1) / sqrt(2): mean 0, std sqrt(4 / 2 / 3).
    """
    parts = torch.tensor([[[1.0, 0.0], [0.0, 10.0]], [[1.0, 4.0], [0.0, 4.0]]])
    found = decoupled_advantages(parts, [1.0, 2.0])
    expected = torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) / 2**0.5 / (2 / 3) ** 0.5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_a_function_that_does_not_apply_to_a_completion_is_no_part_of_its_groups_mean():
    nan = float("nan")
    # Of the second function 1 and 3 are known: deviations -1 and 1, std sqrt(2). The sums:
    # -1 / sqrt(2), 1 / sqrt(2), 0 (the first function has no spread).
    parts = torch.tensor(
        [[[5.0, 1.0], [5.0, 3.0], [5.0, nan]], [[5.0, nan], [5.0, 9.0], [5.0, nan]]]
    )
    found = decoupled_advantages(parts, [1.0, 1.0])
    # Of the six sums the mean is 0 and the std (0.5 + 0.5) / 5 under the root.
    expected = torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]) / 2**0.5 / 0.2**0.5
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)


def test_groups_have_spread_where_two_known_rewards_differ():
    nan = float("nan")
    parts = torch.tensor(
        [[[1.0, nan], [1.0, 2.0]], [[1.0, 3.0], [2.0, nan]], [[nan, 1.0], [nan, 0.0]]]
    )
    assert zero_spread(parts).tolist() == [[True, True], [False, True], [True, False]]
