"""Preference losses against values worked out by hand.

The two pairs: scores chosen (ln 2, -1), rejected (-ln 2, 1); with beta = 1 the first margin is
ln 4, so sigma(m) = 4/5, sigma(-m) = 1/5; sigma(ln 2) = 2/3. The second margin is -2.
"""

from math import exp, log

import pytest
import torch
from gradients import gradient

from main.trainer.dpo import losses
from main.trainer.dpo.losses import PAIR_LOSSES
from main.trainer.dpo.scores import on_policy_weights, sums_of, under_divergence

CHOSEN = torch.tensor([log(2), -1.0])
REJECTED = torch.tensor([-log(2), 1.0])
S2 = 1 / (1 + exp(-2))  # sigma(2)
S1 = 1 / (1 + exp(-1))


def score(name, beta=1.0, **options):
    return PAIR_LOSSES[name].function(CHOSEN, REJECTED, beta, **options).tolist()


@pytest.mark.parametrize(
    ("name", "beta", "options", "expected"),
    [
        # -ln(4/5); sigma(-2) = 1 - S2
        ("sigmoid", 1.0, {}, [log(5 / 4), -log(1 - S2)]),
        # m halves: sigma(ln 2) = 2/3; sigma(-1) = 1 - S1
        ("sigmoid", 0.5, {}, [log(3 / 2), -log(1 - S1)]),
        (
            "sigmoid",
            1.0,
            {"label_smoothing": 0.25},
            [0.75 * log(5 / 4) + 0.25 * log(5), -0.75 * log(1 - S2) - 0.25 * log(S2)],
        ),
        (
            "robust",
            1.0,
            {"label_smoothing": 0.25},
            [
                (0.75 * log(5 / 4) - 0.25 * log(5)) / 0.5,
                (-0.75 * log(1 - S2) + 0.25 * log(S2)) / 0.5,
            ],
        ),
        # target 1 / (2 * 0.25) = 2
        ("ipo", 0.25, {}, [(log(4) - 2) ** 2, 16.0]),
        ("hinge", 0.5, {}, [1 - log(2), 2.0]),
        ("hinge", 1.0, {}, [0.0, 3.0]),
        (
            "exo_pair",
            1.0,
            {"label_smoothing": 0.5},
            # KL from uniform labels: sum p ln(2p)
            [
                0.8 * log(1.6) + 0.2 * log(0.4),
                (1 - S2) * log(2 - 2 * S2) + S2 * log(2 * S2),
            ],
        ),
        # -ln(2/3) - (ln(1/3) + ln(2/3)) / 2
        (
            "nca_pair",
            1.0,
            {},
            [log(3 / 2) + (log(3) + log(3 / 2)) / 2, -log(1 - S1) - (log(S1) + log(1 - S1)) / 2],
        ),
        ("bco_pair", 1.0, {}, [2 * log(3 / 2), -2 * log(1 - S1)]),
        ("sppo_hard", 0.5, {}, [2 * (log(2) - 1) ** 2, 8.0]),
        ("apo_zero", 1.0, {}, [2 / 3, 2 * S1]),
        ("apo_down", 1.0, {}, [2 / 3 + 1 / 5, 1 - S1 + S2]),
        # tau = 1: the blend is sigma(m)
        (
            "discopop",
            1.0,
            {"discopop_tau": 1.0},
            [0.2 * log(5 / 4) + 0.8 / 4, -S2 * log(1 - S2) + (1 - S2) * exp(2)],
        ),
        ("simpo", 1.0, {"simpo_gamma": log(4)}, [log(2), log(1 + 4 * exp(2))]),
    ],
)
def test_a_pair_loss_has_the_value_worked_out_by_hand(name, beta, options, expected):
    assert score(name, beta, **options) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_orpo_is_the_odds_ratio_worked_out_by_hand():
    # p = 1/2 has odds 1, p = 1/5 has odds 1/4: the ratio is 4, sigma(ln 4) = 4/5.
    chosen, rejected = torch.tensor([log(1 / 2)]), torch.tensor([log(1 / 5)])
    assert losses.orpo(chosen, rejected, 0.1).item() == pytest.approx(0.1 * log(5 / 4), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, -1e-9, -200.0])
def test_orpo_is_finite_at_both_ends(value):
    score = torch.tensor([value], requires_grad=True)
    loss = losses.orpo(score, torch.tensor([-1.0]), 1.0)
    loss.backward()
    assert torch.isfinite(loss).all() and torch.isfinite(gradient(score)).all()


def test_kto_has_the_values_worked_out_by_hand():
    # z = ln 2. Desirable at z + ln 2: 1 - sigma(ln 2) = 1/3; undesirable at z - ln 4: 1 - 4/5.
    ratio = torch.tensor([log(4), -log(2), log(2)])
    desirable = torch.tensor([True, False, False])
    found = losses.kto(ratio, desirable, log(2), 1.0, 3.0, 5.0).tolist()
    assert found == pytest.approx([3 / 3, 5 / 5, 5 / 2], rel=1e-5)


def test_sft_is_minus_the_mean():
    assert losses.sft(torch.tensor([-2.0])).tolist() == [2.0]


def test_the_loss_of_equal_scores_is_ln_2_for_the_logistic_losses():
    zero = torch.zeros(3)
    for name in ("sigmoid", "robust"):
        found = PAIR_LOSSES[name].function(zero, zero, 0.1, label_smoothing=0.2)
        assert found.tolist() == pytest.approx([log(2)] * 3, rel=1e-6)


# DiscoPOP has a bump at a margin of 0 (blend' (1 - ln 2) / tau outweighs the slopes).
@pytest.mark.parametrize("name", sorted(set(PAIR_LOSSES) - {"discopop", "sft"}))
def test_descent_widens_the_margin(name):
    chosen, rejected = (torch.tensor([-1.0], requires_grad=True) for _ in range(2))
    loss = PAIR_LOSSES[name]
    options = {"label_smoothing": 1e-3} if name == "exo_pair" else {}
    shift = 1.0 if loss.reference else 0.0  # scores of 0 under a reference
    loss.function(chosen + shift, rejected + shift, 0.1, **options).sum().backward()
    assert (gradient(rejected) - gradient(chosen)).item() > 0


def test_divergences_of_a_ratio_worked_out_by_hand():
    """t = 2: 1 - 1/2; log(4/3); with alpha 3 (t^2 - 1) / 2; with alpha 1 log t, as reverse KL."""
    ratio = torch.tensor([log(2)])
    found = [under_divergence(ratio, "forward_kl", 0.5),
             under_divergence(ratio, "js_divergence", 0.5),
             under_divergence(ratio, "alpha_divergence", 3.0),
             under_divergence(ratio, "alpha_divergence", 1.0),
             under_divergence(ratio, "reverse_kl", 0.5)]  # fmt: skip
    expected = [0.5, log(4 / 3), 1.5, log(2), log(2)]
    assert torch.cat(found).tolist() == pytest.approx(expected)
    far = torch.tensor([-500.0, 500.0])
    assert under_divergence(far, "forward_kl", 0.5).isfinite().all()
    assert under_divergence(far, "alpha_divergence", 3.0).isfinite().all()


def test_what_an_answer_says_longer_than_the_other_counts_less():
    """Answers of 3 and 1 tokens, then 1 and 2: of the longer ones a half beyond the shorter."""
    logprobs = torch.tensor([-1.0, -2.0, -4.0, -1.0, -3.0, -5.0, -7.0])
    assert sums_of(logprobs, [3, 1, 1, 2]).tolist() == [-7.0, -1.0, -3.0, -12.0]
    assert sums_of(logprobs, [3, 1, 1, 2], 0.5).tolist() == [-4.0, -1.0, -3.0, -8.5]


def test_a_pair_that_the_policy_would_write_weighs_more():
    """p = 1/2 among two equal choices: log 1/2 - log(1/4 + 1/4) = 0, weight 1; p = 1/4 beside 3/4:
    log 1/4 - log(10/16) = log 0.4 in each of two tokens of one answer."""
    logprobs = torch.tensor([0.5, 0.25, 0.25]).log()
    squares = torch.tensor([0.5, 0.625, 0.625]).log()
    assert on_policy_weights(logprobs, squares, [1, 2]).tolist() == [pytest.approx(0.4)]
