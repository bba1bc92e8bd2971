"""The estimators of the divergence, on values worked out by hand and on real samples."""

import math

import pytest
import torch

from main.trainer.online.kl import KL_ESTIMATORS, adapted_coefficient, kl_estimate

LOGPROBS, REF = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])


@pytest.mark.parametrize(
    ("estimator", "expected"),
    # r = 0.25 / 0.5: -log r = log 2;  (log 2)^2 / 2;  0.5 - 1 + log 2
    [("k1", 0.693147), ("k2", 0.240227), ("k3", 0.193147)],
)
def test_each_estimator_on_a_token_twice_as_likely_as_under_the_reference(estimator, expected):
    assert kl_estimate(LOGPROBS, REF, estimator).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_mean_over_samples_is_the_divergence(estimator):
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 7).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum().item()
    drawn = torch.multinomial(policy.exp(), 200_000, replacement=True)
    found = kl_estimate(policy[drawn], reference[drawn], estimator).mean().item()
    assert found == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("estimator", KL_ESTIMATORS)
def test_equal_policies_do_not_diverge(estimator):
    assert kl_estimate(LOGPROBS, LOGPROBS, estimator).item() == 0


def test_the_coefficient_moves_by_two_percent_at_most():
    """The error is clipped to +-0.2, a tenth of it counts: 30 of 6 -> +0.02, 5.4 of 6 -> -0.01."""
    assert adapted_coefficient(0.5, 30.0, 6.0) == pytest.approx(0.5 * 1.02)
    assert adapted_coefficient(0.5, 5.4, 6.0) == pytest.approx(0.5 * 0.99)
    assert adapted_coefficient(0.5, -3.0, 6.0) == pytest.approx(0.5 * 0.98)
    assert adapted_coefficient(0.5, 6.0, 6.0) == 0.5
