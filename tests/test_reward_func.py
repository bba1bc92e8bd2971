"""The shipped reward functions on awkward input: messages, blanks, other scripts, odd numbers."""

from fractions import Fraction
from typing import Any

import pytest

from main.evaluation.numbers import last_number
from main.trainer.rewards.functions import Rewards
from main.trainer.rewards.scoreable import Scoreable
from main.utils.reward_func import (
    fields_reward,
    format_reward,
    json_reward,
    language_reward,
    length_reward,
    repetition_reward,
    reward_exact,
    reward_format,
    reward_json,
    reward_len,
    reward_number,
    reward_repetition,
    similarity_reward,
    text_of,
)


def as_messages(text: str) -> list[dict]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    "function",
    [reward_len, reward_format, reward_exact, reward_number, reward_json, reward_repetition,
     length_reward(3), language_reward("zh")],
)  # fmt: skip
@pytest.mark.parametrize("text", ["", " \n", "12", "你好，世界。" * 4, "🙂", "\x00<|im_end|>"])
def test_strings_and_messages_score_the_same_and_everything_gets_a_number(function, text):
    columns = {"answer": ["12"], "level": [3]}
    plain = function(completions=[text], **columns)
    assert plain == function(completions=[as_messages(text)], **columns)
    assert len(plain) == 1 and isinstance(plain[0], float) and abs(plain[0]) <= 100


def test_the_text_of_parts_is_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert text_of([{"role": "assistant", "content": parts}]) == "ab"
    assert text_of([{"role": "assistant", "content": None}]) == ""


def test_reward_len_is_the_distance_from_twenty_characters():
    assert reward_len(["x" * 20, "", "你好"]) == [0.0, -20.0, -18.0]
    assert length_reward(5)(["12345", "1"]) == [0.0, -4.0]


def test_the_format_is_that_of_the_whole_text():
    good = "<reasoning>\na\nb\n</reasoning>\n<answer>\n4\n</answer>\n"
    assert reward_format([good, f"x {good}", "<answer>4</answer>", ""]) == [1.0, 0.0, 0.0, 0.0]
    assert format_reward(r"\d+ \| .+")(["12 | a\nb", "x12 | a"]) == [1.0, 0.0]


def test_fields_count_in_their_places_and_neither_too_many_nor_too_few_pay():
    reward = fields_reward("|")
    assert reward(["a | b|c", "a|b", "a|b|c|d", ""], answer=["a|b | c"] * 4) == [
        1.0, 2 / 3, 3 / 4, 0.0
    ]  # fmt: skip
    assert reward(["b | a", "x"], answer=[["a | b", "b | x"], None]) == [0.5, None]
    assert fields_reward(",")([as_messages("1, 2")], answer=["1,3"]) == [0.5]


def test_exact_match_forgives_white_space_and_width_but_nothing_else():
    assert reward_exact([" by\tMonday\n", "By Monday"], answer=["by Monday"] * 2) == [1.0, 0.0]
    assert reward_exact(["１２ｋｇ"], answer=["12kg"]) == [1.0]
    assert reward_exact(["b", "c"], answer=[["a", "b"], ["a", "b"]]) == [1.0, 0.0]
    assert reward_exact(["b", "12", ""], answer=[None, 12, ""]) == [None, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("no number", None),
        ("", None),
        ("The answer is 7.", 7),
        ("-3", -3),
        ("5-3", 3),
        ("1,234,567.5 dollars", "1234567.5"),
        ("1,2,3", 3),
        (".5", "0.5"),
        ("1e3", 1000),
        ("50%", "0.5"),
        ("１２３", 123),
        ("共42个", 42),
        ("v2", None),
        ("7.0", 7),
        ("00012", 12),
        ("1.2.3", None),
    ],
)
def test_the_last_number_of_a_text(text, number):
    assert last_number(text) == (None if number is None else Fraction(number))


def test_numbers_are_compared_as_numbers():
    found = reward_number(
        ["so 1,000", "1000.00 €", "1001", "many", "7"], answer=["1000"] * 4 + ["unknown"]
    )
    assert found == [1.0, 1.0, 0.0, 0.0, None]


def test_json_may_stand_in_one_block_and_nan_is_not_json():
    block = '```json\n{"a": 1}\n```'
    texts = ['{"a": 1}', block, "[1, 2]", '{"a": 1} ok', "{'a': 1}", '{"a": NaN}', "", "[" * 5000]
    assert reward_json(texts) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert json_reward(["a", "b"])(['{"a": 1, "b": 2}', '{"a": 1}', "[]"]) == [1.0, 0.0, 0.0]


def test_repetition_is_the_share_of_groups_that_came_before():
    # "a b c a b c a b c": 7 groups of three, 3 of them distinct
    assert reward_repetition(["a b c a b c A b c"]) == [pytest.approx(-4 / 7)]
    # 好好好好: 3 groups of two characters, 1 distinct
    assert repetition_reward(2, 0.5)(["好好好好", "好的", "好"]) == [
        pytest.approx(-0.5 * 2 / 3), 0.0, 0.0,
    ]  # fmt: skip


def test_language_is_the_share_of_letters_in_its_script():
    assert language_reward("zh")(["你好 ab", "你好，12", "abc", "123"]) == [0.5, 1.0, 0.0, 0.0]
    assert language_reward("en")(["naïve", "Привет ok"]) == [1.0, 0.25]
    assert language_reward("ja")(["ひらカナ漢字"]) == [1.0]
    assert language_reward("ko")(["한국어"]) == [1.0]


def test_similarity_prefers_the_paraphrase_and_takes_the_best_answer(encoder_path):
    reward = similarity_reward(encoder_path)
    gold = "The cat sits on the mat."
    near, far, same, blank, none = reward(
        ["A cat is sitting on a mat.", "Interest rates rose.", gold, "", "x"],
        answer=[gold, gold, ["Nothing.", gold], gold, None],
    )
    assert same == pytest.approx(1.0, abs=1e-5)
    assert near and far and near > 0.7 > 0.3 > far and blank == 0.0 and none is None


def test_all_of_them_work_as_reward_functions_of_a_trainer():
    functions: list[Any] = [reward_len, reward_exact, length_reward(7), language_reward("zh")]
    rewards = Rewards(functions)
    what = Scoreable([[]], [as_messages("12")], [[5]], [{"answer": "12"}], [1])
    assert rewards.score(what).rewards.tolist() == [-18 + 1 - 5 + 0]
    assert rewards.names == ["reward_len", "reward_exact", "reward_length", "reward_language_zh"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The answer is \u22125.", "-5"),
        ("between 3\u20135", "5"),
        ("1 000 000", "1000000"),
        ("1\u202f000\u00a0000,", "1000000"),
        ("1.000.000 or 1'000", "1000"),
        ("1.234.567", "1234567"),
        ("1/2", "1/2"),
        ("-3/4", "-3/4"),
        ("\u00bd", "1/2"),
        (r"x = -\frac{1}{2}", "-1/2"),
        ("10^3", "1000"),
        ("2**-1", "1/2"),
        ("2\u00b3 cm", "8"),
        (r"x^{2} = 10^{-2}", "1/100"),
        (r"50\%", "1/2"),
        ("$1,234.50.", "2469/2"),
        ("on 2024/05/06", "6"),
        ("in 2020 300 people", "300"),
    ],
)
def test_a_number_is_read_as_what_it_is(text, value):
    assert last_number(text) == Fraction(value)


@pytest.mark.parametrize("text", ["1e999999999", "9^999999", "1/0", "v1.2.3", "none"])
def test_what_is_no_number_that_somebody_means_is_none(text):
    assert last_number(text) is None


def test_a_minus_of_another_kind_is_not_lost():
    assert reward_number(["The answer is \u22125."], answer=["5"]) == [0.0]
    assert reward_number(["It is 0.5"], answer=["1/2"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<reasoning>\na <b> c\n</reasoning>\n<answer>x < y</answer>\n", 1.0),
        ("<reasoning>a</reasoning><answer> \n</answer>", 0.0),
        ("<reasoning> </reasoning><answer>b</answer>", 0.0),
        ("<reasoning>a</reasoning><answer>b</answer><answer>c</answer>", 0.0),
        ("<reasoning>a<answer>x</answer></reasoning><answer>b</answer>", 0.0),
        ("<reasoning><reasoning>a</reasoning></reasoning><answer>b</answer>", 0.0),
    ],
)
def test_the_format_has_each_part_once_and_not_blank(text, reward):
    assert reward_format([text]) == [reward]
