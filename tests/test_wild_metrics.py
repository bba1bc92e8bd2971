"""Scores of any texts are within their bounds, and of anything else an error of ours comes out."""

import math
from typing import Any

import pytest
import wild
from chat_templates import load_tokenizer
from hypothesis import strategies as st

from main.errors import ConfigError, DataError, MainError
from main.evaluation.metrics import evaluate_all_metrics, evaluate_generation

TEXTS = st.one_of(
    wild.TEXT, wild.WORDS, st.text(st.sampled_from("ab 长城。.\nа́"), max_size=30), st.just(None)
)
REFERENCES = st.one_of(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
OF_A_HUNDRED = ("BLEU", "chrF")


def assert_in_bounds(scores: dict[str, Any]) -> None:
    for name, score in scores.items():
        if isinstance(score, float):
            highest = math.inf if name == "TER" else 100 if name in OF_A_HUNDRED else 1
            assert 0 <= score <= highest * (1 + 1e-9) and math.isfinite(score), (name, score)


@wild.how_many(50, 10_000)
def test_scores_of_any_texts_are_within_their_bounds(examples):
    tokenizer = load_tokenizer("smollm2")

    def check(references: Any, generated: Any, intensive: bool, standard: bool) -> None:
        try:
            found = evaluate_all_metrics(tokenizer, references, generated, intensive, standard)
        except MainError:
            return
        assert_in_bounds(found)

    flags = {"intensive": st.booleans(), "standard": st.booleans()}
    wild.holds(check, examples, references=REFERENCES, generated=TEXTS, **flags)


@wild.how_many(100, 5_000)
def test_a_text_scores_best_against_itself(examples):
    tokenizer = load_tokenizer("smollm2")

    def check(text: str, other: str, standard: bool) -> None:
        try:
            found = evaluate_all_metrics(tokenizer, [other, text], text, standard=standard)
            same = evaluate_all_metrics(tokenizer, text, text, standard=standard)
        except MainError:
            return
        assert same["TER"] == 0
        assert all(same[n] in (0, 1) for n in same if n.startswith("ROUGE"))
        if tokenizer.encode(text) and not standard:  # some bytes have no token
            assert same["BLEU-1"] == pytest.approx(1) and found["BLEU-1"] == pytest.approx(1)
        assert found["METEOR"] >= same["METEOR"] - 1e-9  # the best reference counts

    texts = st.text(st.sampled_from("abc 长城。.é\n"), max_size=20)
    wild.holds(check, examples, text=texts, other=TEXTS, standard=st.booleans())


@wild.how_many(80, 5_000)
def test_rouge_is_symmetric_in_its_two_texts(examples):
    tokenizer = load_tokenizer("smollm2")

    def check(one: str, other: str) -> None:
        there, back = (
            evaluate_all_metrics(tokenizer, a, b) for a, b in ((one, other), (other, one))
        )
        for name in ("ROUGE-1", "ROUGE-2", "ROUGE-L"):
            assert there[name] == pytest.approx(back[name])

    texts = st.text(st.sampled_from("ab 长城.é"), min_size=1, max_size=20).filter(str.strip)
    wild.holds(check, examples, one=texts, other=texts)


@wild.how_many(120, 10_000)
def test_of_anything_else_come_scores_or_an_error_of_ours(examples):
    tokenizer = load_tokenizer("smollm2")
    entries = st.one_of(wild.ANYTHING, st.lists(st.one_of(TEXTS, wild.ANYTHING), max_size=3))

    def check(references: Any, generated: Any, standard: Any, boots: Any) -> None:
        try:
            found = evaluate_generation(
                tokenizer, references, generated, False, standard, n_bootstrap=boots, show=False
            )
        except MainError as error:
            assert str(error)
        else:
            assert_in_bounds(found)

    flags = {"standard": st.one_of(st.booleans(), wild.ANYTHING), "boots": st.integers(-2, 5)}
    wild.holds(check, examples, references=entries, generated=entries, **flags)


@pytest.mark.parametrize("wrong", [None, 3, False, {"a": 1}])
def test_what_is_no_list_of_texts_is_refused_by_name(wrong):
    with pytest.raises(DataError, match=r"generated is one \w+, and must be a list"):
        evaluate_generation(load_tokenizer("smollm2"), ["a"], wrong)
    with pytest.raises(DataError, match=r"references is one \w+, and must be a list"):
        evaluate_generation(load_tokenizer("smollm2"), wrong, ["a"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"n_bootstrap": -1}, "n_bootstrap=-1 must be 0 or more"),
        ({"n_bootstrap": 2.5}, "n_bootstrap=2.5 must be an integer"),
        ({"seed": "x"}, "seed='x' must be an integer"),
        ({"bleu_tokenizer": "ja-mecab"}, r"bleu_tokenizer='ja-mecab' cannot be had: Japanese"),
    ],
)
def test_an_argument_that_cannot_work_is_refused_by_name(option, message):
    with pytest.raises(ConfigError, match=message):
        evaluate_generation(None, ["a", "b"], ["a", "b"], standard=True, **option)
