"""Credit worked by hand on three tokens, and against a slow sum written from the definition."""

import math
import random

import pytest
import torch
from gradients import gradient

from main.trainer.online.statistics import moments
from main.trainer.ppo.gae import explained_variance, gae, place_scores, value_losses, whiten

REWARDS = [1.0, 0.0, 2.0]
VALUES = [0.5, 1.0, -1.0]


def one(rewards, values, last, discount, lam):
    mask = torch.ones(1, len(rewards), dtype=torch.bool)
    found = gae(
        torch.tensor([rewards]), torch.tensor([values]), mask, torch.tensor([last]), discount, lam
    )
    return found.advantages[0].tolist(), found.returns[0].tolist()


@pytest.mark.parametrize(
    ("discount", "lam", "last", "advantages"),
    [
        # lambda 0: delta_t = r_t + g V_{t+1} - V_t. g=1: 1+1-.5, 0-1-1, 2+0+1
        (1.0, 0.0, 0.0, [1.5, -2.0, 3.0]),
        # lambda 1, g=1: sum of rewards from t on, minus V_t: 3-.5, 2-1, 2+1
        (1.0, 1.0, 0.0, [2.5, 1.0, 3.0]),
        # g=0: r_t - V_t, whatever lambda
        (0.0, 0.0, 0.0, [0.5, -1.0, 3.0]),
        (0.0, 1.0, 0.0, [0.5, -1.0, 3.0]),
        # cut by the length limit, V after it = 4: the last delta is 2+4+1
        (1.0, 0.0, 4.0, [1.5, -2.0, 7.0]),
        (1.0, 1.0, 4.0, [6.5, 5.0, 7.0]),
        (0.0, 1.0, 4.0, [0.5, -1.0, 3.0]),
        # g=.5, lambda=.5: deltas 1+.5-.5=1, 0-.5-1=-1.5, 2+1=3; A = 3, -1.5+.75, 1-.1875
        (0.5, 0.5, 0.0, [0.8125, -0.75, 3.0]),
    ],
)
def test_three_tokens_by_hand(discount, lam, last, advantages):
    found, returns = one(REWARDS, VALUES, last, discount, lam)
    assert found == pytest.approx(advantages)
    assert returns == pytest.approx([a + v for a, v in zip(advantages, VALUES, strict=True)])


def slow_gae(rewards, values, last, discount, lam):
    """A_t = sum over n of (discount * lam)^n delta_{t+n}, term by term (equation 16)."""
    ahead = [*values[1:], last]
    deltas = [rewards[i] + discount * ahead[i] - values[i] for i in range(len(rewards))]
    return [
        sum((discount * lam) ** (n - t) * deltas[n] for n in range(t, len(rewards)))
        for t in range(len(rewards))
    ]


def test_a_padded_batch_equals_each_sequence_alone():
    rng = random.Random(0)
    lengths = [5, 1, 8, 3]
    width = max(lengths)
    rows = [[[rng.gauss(0, 1) for _ in range(n)] for n in lengths] for _ in range(2)]
    last = [rng.gauss(0, 1) for _ in lengths]
    mask = torch.tensor([[t < n for t in range(width)] for n in lengths])
    # Rubbish in the padding must not matter.
    rewards, values = (
        torch.tensor([row + [9.0] * (width - len(row)) for row in part], dtype=torch.float64)
        for part in rows
    )
    found = gae(rewards, values, mask, torch.tensor(last, dtype=torch.float64), 0.9, 0.8)
    for i, n in enumerate(lengths):
        expected = slow_gae(rows[0][i], rows[1][i], last[i], 0.9, 0.8)
        assert found.advantages[i, :n].tolist() == pytest.approx(expected, rel=1e-9)
        assert found.advantages[i, n:].abs().sum() == 0 and found.returns[i, n:].abs().sum() == 0
        values = found.returns[i, :n] - found.advantages[i, :n]
        assert values.tolist() == pytest.approx(rows[1][i])


def test_a_score_goes_to_the_last_real_token_or_is_spread():
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    scores = torch.tensor([6.0, -1.0])
    last = place_scores(scores, mask, "last")
    assert last.tolist() == [[0, 0, 6, 0], [-1, 0, 0, 0]]
    every = place_scores(scores, mask, "every")
    assert every.tolist() == [[2, 2, 2, 0], [-1, 0, 0, 0]]


def test_whitening_is_over_the_given_numbers_only():
    parts = [torch.tensor([1.0, 3.0]), torch.tensor([5.0])]
    over = moments(parts)
    # mean 3, squares 4 + 0 + 4
    assert tuple(over) == (3, 3.0, pytest.approx(8 / 3))
    white = torch.cat([whiten(part, over) for part in parts])
    step = 2 / math.sqrt(8 / 3)
    assert white.tolist() == pytest.approx([-step, 0, step])
    kept = whiten(parts[0], over, shift_mean=False)
    assert kept.tolist() == pytest.approx([1 / math.sqrt(35 / 3), 3 / math.sqrt(35 / 3)])


def test_equal_advantages_whiten_to_zero_and_not_to_nan():
    same = torch.full((4,), 0.7)
    assert whiten(same, moments([same])).abs().max() < 1e-3
    assert whiten(same, moments([same]), shift_mean=False).tolist() == pytest.approx([1.0] * 4)


def test_value_clipping_around_old_values_by_hand():
    """c = 0.2, V_old = 0, R = 1: V = 0.1 is inside, 0.6 outside towards R, -0.6 outside, away."""
    values = torch.tensor([0.1, 0.6, -0.6], requires_grad=True)
    losses = value_losses(values, torch.zeros(3), torch.ones(3), clip=0.2)
    # (0.1-1)^2; max(0.4^2, (0.2-1)^2); max(1.6^2, (-0.2-1)^2); halved
    assert losses.tolist() == pytest.approx([0.405, 0.32, 1.28])
    losses.sum().backward()
    assert gradient(values).tolist() == pytest.approx([-0.9, 0.0, -1.6])
    plain = value_losses(values, torch.zeros(3), torch.ones(3))
    assert plain.tolist() == pytest.approx([0.405, 0.08, 1.28])


def test_explained_variance_of_a_perfect_a_constant_and_a_wrong_critic():
    returns = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]
    assert explained_variance(returns, returns) == pytest.approx(1)
    constant = [torch.full_like(part, 7.0) for part in returns]
    assert explained_variance(constant, returns) == pytest.approx(0)
    assert explained_variance([-part for part in returns], returns) == pytest.approx(-3)
    assert explained_variance(returns, constant) == 0  # nothing to explain
