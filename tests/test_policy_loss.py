"""Policy losses: values worked out by hand on both signs of the advantage, masks, gradients."""

import math

import pytest
import torch
from gradients import gradient

from main.errors import ConfigError
from main.options import parse
from main.trainer.online.off_policy import near_policy, sampling_correction
from main.trainer.online.policy_loss import (
    POLICY_LOSSES,
    PolicyLoss,
    Surrogate,
    Tokens,
    cispo_surrogate,
    clipped_surrogate,
    importance_ratio,
    sapo_surrogate,
    token_mean,
    vespo_surrogate,
)

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_the_clip_holds_back_on_the_good_side_only():
    # ratio 1.5 and 0.5, epsilon 0.2. A = +1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5.
    # A = -1: min(-1.5, -1.2) = -1.5 and min(-0.5, -0.8) = -0.8.
    ratio = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    losses, clipped = clipped_surrogate(ratio, torch.tensor([[1.0], [-1.0]]), 0.2)
    torch.testing.assert_close(losses, torch.tensor([[-1.2, -0.5], [1.5, 0.8]]))
    assert clipped.tolist() == [[True, False], [False, True]]


def test_the_upper_bound_may_be_wider_than_the_lower_one():
    ratio = torch.tensor([[1.25, 1.5]])
    losses, clipped = clipped_surrogate(ratio, torch.ones(1, 1), 0.2, 0.28)
    torch.testing.assert_close(losses, torch.tensor([[-1.25, -1.28]]))
    assert clipped.tolist() == [[False, True]]


def test_a_clipped_token_has_no_gradient():
    ratio = torch.tensor([[1.5, 1.1]], requires_grad=True)
    clipped_surrogate(ratio, torch.ones(1, 1), 0.2).losses.sum().backward()
    assert gradient(ratio).tolist() == [[0.0, -1.0]]


def test_the_token_ratio_is_one_by_one_and_the_sequence_ratio_their_geometric_mean():
    old = torch.zeros(2, 3)
    new = torch.tensor([[0.3, -0.1, 0.1], [0.5, 9.0, 9.0]])
    token = importance_ratio(new, old, MASK)
    torch.testing.assert_close(token[0], torch.tensor([0.3, -0.1, 0.1]).exp())
    assert token[1].tolist() == [pytest.approx(math.exp(0.5)), 1.0, 1.0]  # padding counts nothing
    sequence = importance_ratio(new, old, MASK, "sequence")
    # (0.3 - 0.1 + 0.1) / 3 = 0.1, and 0.5 alone
    torch.testing.assert_close(sequence, torch.tensor([[0.1], [0.5]]).exp())


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    logprobs = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    ratio = torch.tensor([[0.5, 9.0]])
    losses, clipped = cispo_surrogate(logprobs, ratio, torch.full((1, 1), 2.0), 5.0)
    # -0.5 * 2 * -1 = 1 and -5 * 2 * -2 = 20; the gradients are -0.5 * 2 and -5 * 2
    torch.testing.assert_close(losses.detach(), torch.tensor([[1.0, 20.0]]))
    assert clipped.tolist() == [[False, True]]
    losses.sum().backward()
    assert gradient(logprobs).tolist() == [[-1.0, -10.0]]


def test_cispo_counts_a_bounded_weight_as_clipped_where_the_advantage_is_positive():
    """As TRL counts `cispo_clip_ratio`."""
    ratio, advantages = torch.full((3, 1), 9.0), torch.tensor([[2.0], [-2.0], [0.0]])
    losses, clipped = cispo_surrogate(torch.full((3, 1), -1.0), ratio, advantages, 5.0)
    assert clipped.tolist() == [[True], [False], [False]]
    assert losses.tolist() == [[10.0], [-10.0], [0.0]]  # -5 * A * -1: all three are bounded


def test_sapo_is_a_gate_with_slope_one_at_ratio_one():
    ratio = torch.ones(2, 1, requires_grad=True)
    losses = sapo_surrogate(ratio, torch.tensor([[1.0], [-1.0]]), 1.0, 1.05).losses
    # sigmoid(0) * 4 / tau = 2 / tau; the slope 4 / tau * tau / 4 = 1
    torch.testing.assert_close(losses.detach(), torch.tensor([[-2.0], [2 / 1.05]]))
    losses.sum().backward()
    torch.testing.assert_close(ratio.grad, torch.tensor([[-1.0], [1.0]]))


def test_vespo_weighs_one_at_the_old_policy_and_less_away_from_it():
    old = torch.full((1, 2), -1.0)
    mask = torch.ones(1, 2, dtype=torch.bool)
    plus = torch.ones(1, 1)
    assert vespo_surrogate(old, old, plus, mask).losses.tolist() == [[1.0, 1.0]]
    # log w = 0.2 in sum, w = 1.2214: exp(3 + 2 * 0.2 - 3 * 1.2214) = exp(-0.2642) = 0.7678
    moved = vespo_surrogate(old + 0.1, old, plus, mask).losses
    torch.testing.assert_close(moved, torch.full((1, 2), 0.7678 * 0.9), atol=1e-4, rtol=0)
    # A sampler that was e^0.2 less likely to say this is the same as a policy that moved by 0.2.
    correction = torch.full((1, 2), math.exp(0.1))
    corrected = vespo_surrogate(old, old, plus, mask, correction).losses
    torch.testing.assert_close(corrected, torch.full((1, 2), 0.7678), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("loss_type", "total", "unit", "count"),
    [
        # losses (1, 2, 3) and (6); the mean of the first is 2
        ("grpo", 2 + 6, "sequences", 2),
        ("gspo", 2 + 6, "sequences", 2),
        ("sapo", 2 + 6, "sequences", 2),
        ("dapo", 12, "tokens", 4),
        ("cispo", 12, "tokens", 4),
        ("vespo", 12, "tokens", 4),
        ("luspo", 12, "sequences", 2),
        ("bnpo", 12 / 4, "micro_batches", 1),
        ("dr_grpo", 12 / 10, "sequences", 2),
    ],
)
def test_tokens_are_added_up_as_the_variant_says(loss_type, total, unit, count):
    losses = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, math.inf]])
    result = POLICY_LOSSES[loss_type].add_up(losses, MASK, 10)
    assert float(result.total) == pytest.approx(total)
    assert (result.unit, result.number) == (unit, count)


def test_one_loss_a_sequence_counts_for_each_of_its_tokens():
    losses = torch.tensor([[2.0], [6.0]])
    assert float(POLICY_LOSSES["gspo"].add_up(losses, MASK, 10).total) == 2 + 6
    assert float(POLICY_LOSSES["luspo"].add_up(losses, MASK, 10).total) == 3 * 2 + 6


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo", "dr_grpo", "luspo"])
def test_a_completion_that_is_masked_whole_adds_nothing_and_no_nan(loss_type):
    losses = torch.ones(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    total = POLICY_LOSSES[loss_type].add_up(losses, nothing, 10).total
    total.backward()
    assert float(total.detach()) == 0.0 and gradient(losses).eq(0).all()


def test_the_correction_is_the_ratio_of_trainer_to_sampler_up_to_the_cap():
    old = torch.tensor([[-1.0, -1.0, -1.0], [-1.0, 0.0, 0.0]])
    sampling = torch.tensor([[-1.5, -4.0, math.nan], [-0.5, -9.0, -9.0]])
    # exp(0.5), exp(3) cut to 2, unknown = 1; exp(-0.5), padding = 1
    expected = torch.tensor([[math.exp(0.5), 2.0, 1.0], [math.exp(-0.5), 1.0, 1.0]])
    torch.testing.assert_close(sampling_correction(old, sampling, MASK, 2.0), expected)


def test_at_the_old_policy_every_surrogate_has_the_plain_policy_gradient():
    torch.manual_seed(0)
    values = torch.randn(2, 3)
    advantages = torch.tensor([[1.5], [-0.5]])
    gradients = []
    for name in ("clip", "cispo", "sapo", "vespo"):
        logprobs = values.clone().requires_grad_()
        ratio = importance_ratio(logprobs, values, MASK)
        losses = {
            "clip": lambda lp, r: clipped_surrogate(r, advantages),
            "cispo": lambda lp, r: cispo_surrogate(lp, r, advantages, 5.0),
            "sapo": lambda lp, r: sapo_surrogate(r, advantages, 1.0, 1.0),
            "vespo": lambda lp, r: vespo_surrogate(lp, values, advantages, MASK),
        }[name](logprobs, ratio).losses
        POLICY_LOSSES["dapo"].add_up(losses, MASK, 3).total.backward()
        gradients.append(gradient(logprobs))
    expected = -advantages * MASK
    for found in gradients:
        torch.testing.assert_close(found, expected)


def test_a_variant_is_a_line_of_the_table(monkeypatch):
    """Its name, its options and what is refused of them follow from that line alone."""
    from main.trainer.grpo.options import GRPOOptions

    def plain(tokens: Tokens, epsilon_high: float) -> Surrogate:
        return Surrogate(-tokens.ratio * tokens.advantages * epsilon_high, tokens.mask)

    loss = PolicyLoss(plain, token_mean, ("epsilon_high",), {"epsilon_high": 3.0}, scale="none")
    monkeypatch.setitem(POLICY_LOSSES, "plain", loss)
    given = {"reward_func": len, "loss_type": "plain"}
    options = parse(GRPOOptions, given, "the call")
    assert options.scale == "none"
    with pytest.raises(ConfigError, match=r"epsilon=0\.5 changes nothing with loss_type='plain'"):
        parse(GRPOOptions, {**given, "epsilon": 0.5}, "the call")
    ones = torch.ones(2, 3)
    tokens = Tokens(ones, ones, ones, MASK, ones * 2, correction=ones * 0.5)
    assert loss.of(tokens, vars(options)).losses.tolist() == [[-3.0] * 3] * 2  # -2 * 1 * 3 * 0.5


def test_a_ratio_beyond_delta_is_no_longer_pulled_back():
    """A = -1: losses are the ratio itself above 1 - epsilon, and at most delta."""
    ratio = torch.tensor([[0.5, 1.5, 3.0, 9.0]], requires_grad=True)
    found = clipped_surrogate(ratio, torch.full((1, 1), -1.0), 0.2, delta=4.0)
    assert found.losses.tolist() == [[pytest.approx(0.8), 1.5, 3.0, 4.0]]
    found.losses.sum().backward()
    assert gradient(ratio).tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert found.clipped.tolist() == [[True, False, False, True]]


def test_corrections_beyond_the_bounds_are_cut_or_dropped_by_token_or_by_sequence():
    # Ratios 2, 1/4, 1 and, unknown, 1: together 1/2.
    mask = torch.ones(1, 4, dtype=torch.bool)
    sampling = torch.zeros(1, 4)
    old = torch.tensor([[2.0, 0.25, 1.0, 1.0]]).log()
    sampling[0, 3] = torch.nan

    def found(mode, floor, cap):
        return sampling_correction(old, sampling, mask, cap, floor, mode).tolist()[0]

    assert found("token_truncate", 0.5, 1.5) == pytest.approx([1.5, 0.5, 1.0, 1.0])
    assert found("token_mask", 0.5, 1.5) == pytest.approx([0.0, 0.0, 1.0, 1.0])
    assert found("token_mask", None, 2.5) == pytest.approx([2.0, 0.25, 1.0, 1.0])
    assert found("sequence_truncate", 0.75, 1.5) == pytest.approx([0.75])
    assert found("sequence_mask", None, 1.5) == pytest.approx([0.5])
    assert found("sequence_mask", 0.75, 1.5) == [0.0]


def test_sequences_of_another_policy_are_left_out_where_they_are_to_become_less_likely():
    """Mean distances over the two tokens that count: 0.3 and 0.3, 0.1, and 0 where unknown."""
    mask = torch.tensor([[True, True, False]] * 4)
    sampling = torch.tensor([[0.6, 0.0, 9.0], [0.6, 0.0, 9.0], [0.1, 0.1, 9.0], [torch.nan] * 3])
    advantages = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0]])
    kept = near_policy(torch.zeros(4, 3), sampling, advantages, mask, threshold=0.2)
    assert kept.tolist() == [[True], [False], [True], [True]]
