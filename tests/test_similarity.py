"""The guide's reward on worked examples and on the real encoder."""

import pytest
import torch

from main.errors import ConfigError
from main.models.encoder import SentenceEncoder
from main.trainer.rewards.similarity import SimilarityReward, decide, jaccard, similarity


@pytest.fixture(scope="module")
def encoder(encoder_path):
    return SentenceEncoder(encoder_path, device="cpu")


def reward(encoder, text, gold, bad, weights=(0.5, 0.5)):
    function = SimilarityReward(encoder, weights)
    return function(["p"], [text], gold_answers=[gold], bad_answers=[bad])[0]


def test_jaccard_of_sets():
    assert jaccard([1, 2, 3], [2, 3, 4]) == 2 / 4
    assert jaccard([1, 1, 1], [1]) == 1  # sets: how often a token comes does not matter
    assert jaccard([], [1]) == 0
    assert jaccard([], []) == 1  # identical empty sets


def test_a_negative_cosine_counts_as_none():
    assert similarity(-0.8, 0.5, (0.6, 0.4)) == pytest.approx(0.2)
    assert similarity(0.5, 0.25, (0.6, 0.4)) == pytest.approx(0.6 * 0.5 + 0.4 * 0.25)


def test_the_best_matching_answer_decides_the_sign():
    assert decide([0.2, 0.7], [0.6]) == 0.7
    assert decide([0.2, 0.7], [0.6, 0.8]) == -0.8
    assert decide([0.0], [0.0]) == 0.0


def test_a_worked_example_in_both_signs(encoder):
    """The encoder's words: {a, black, cat} and {a, white, cat}: jaccard 2/4."""
    gold, bad = "a black cat", "a white cat"
    cosine = float(encoder.encode([gold]) @ encoder.encode([bad]).T)
    assert 0 < cosine < 1
    assert reward(encoder, gold, [gold], [bad]) == pytest.approx(1.0)
    assert reward(encoder, bad, [gold], [bad]) == pytest.approx(-1.0)
    only_bad_left = reward(encoder, gold, ["q"], [bad], (0.3, 0.7))
    assert only_bad_left == pytest.approx(-(0.3 * cosine + 0.7 * 0.5), abs=1e-6)


def test_each_weight_has_its_own_effect(encoder):
    gold, bad, text = ["a black cat"], ["q"], "a white cat"
    assert reward(encoder, text, gold, bad, (0, 1)) == pytest.approx(0.5)
    cosine = float(encoder.encode([text]) @ encoder.encode(gold).T)
    assert reward(encoder, text, gold, bad, [1.0, 0.0]) == pytest.approx(cosine, abs=1e-6)


def test_an_empty_completion_is_like_nothing(encoder):
    assert reward(encoder, "", ["a cat"], ["a dog"]) == 0
    assert reward(encoder, " \n", ["a cat"], ["a dog"]) == 0


def test_rows_are_scored_apart_and_messages_and_single_strings_are_taken(encoder):
    function = SimilarityReward(encoder)
    found = function(
        ["p", "p"],
        [[{"role": "assistant", "content": "a black cat"}], "two dogs"],
        gold_answers=["a black cat", ["three birds"]],
        bad_answers=[["a white cat"], "two dogs"],
        row=[1, 2],
    )
    assert found == pytest.approx([1.0, -1.0])


def test_chinese_answers_are_told_apart(encoder):
    assert reward(encoder, "取消订单", ["取消订单"], ["退货"]) == pytest.approx(1.0)


def test_token_ids_hold_no_special_tokens(encoder):
    assert not set(encoder.token_ids("a cat")) & set(encoder.tokenizer.all_special_ids)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0], [0.2, 0.3, 0.5], [0, 0]])
def test_weights_that_do_not_sum_to_one_are_refused(encoder, weights):
    with pytest.raises(ConfigError, match=r"weight_for_cos_and_jaccard=.* sum to 1"):
        SimilarityReward(encoder, weights)


def test_the_policys_random_state_is_left_alone(encoder):
    before = torch.get_rng_state()
    reward(encoder, "another text", ["a"], ["b"])
    assert torch.equal(before, torch.get_rng_state())
