"""Benchmarks from local files: their published rows, questions, scores, intervals, refusals."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from main.errors import ConfigError, DataError, MissingExtraError, MissingFileError
from main.evaluation.benchmarks import BENCHMARKS, evaluate_benchmark
from main.evaluation.benchmarks.ifeval import mark
from main.evaluation.benchmarks.instructions import INSTRUCTIONS, follows, sentences
from main.evaluation.intervals import of_clusters, of_groups, wilson
from main.predictor.hf import Predictor

pytestmark = pytest.mark.usefixtures("own_folder")

GSM8K = [
    {"question": "2 apples and 3 more?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"},
    {"question": "Half of 2,400?", "answer": "2400 / 2 = 1200\n#### 1,200"},
]
IFEVAL = [
    {
        "key": 1000,
        "prompt": "Say hello in at most 4 words, without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "less than", "num_words": 5}],
    },
    {
        "key": 1001,
        "prompt": "Give a title.",
        "instruction_id_list": ["detectable_format:title"],
        # as in the table: every name in every entry
        "kwargs": [{"num_words": None, "relation": None}],
    },
]


def lines(path: str, rows: list) -> str:
    Path(path).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def table(path: str, rows: list) -> str:
    Path(path).parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def saying(*answers: Any):
    """A batcher that gives these answers in turn."""
    waiting = iter(answers)
    return lambda item: [next(waiting) for _ in item["query"]]


# -- intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (0, 7, 0, 0.35433),
        (7, 7, 0.64567, 1),
        (3, 10, 0.107791, 0.603222),
        (540, 1319, 0.383165, 0.436164),
    ],
)
def test_wilson_s_interval_is_that_of_scipy_s_binomtest(hits, n, low, high):
    bounds = pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6)
    assert wilson(hits, n) == (hits / n, *bounds, n)


def test_answers_that_go_together_make_a_wider_interval_than_as_many_alone():
    together = of_clusters([5, 0] * 50, [5, 5] * 50)
    alone = of_clusters([1, 0] * 250, [1, 1] * 250)
    assert together.value == alone.value == 0.5 and together.n == alone.n == 500
    # the spread of a mean of 100 rows against that of 500: a factor of the root of 5
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(5**0.5, rel=0.15)


def test_the_mean_over_groups_weighs_a_small_group_like_a_large_one():
    found = of_groups([10, 0], [10, 1000])
    assert found == (0.5, 0.5, 0.5, 1010)  # all right and all wrong: nothing to draw differently
    half = of_groups([50, 50], [100, 100])
    assert half.high - half.low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.15)


# -- benchmarks in their published form


def test_gsm8k_compares_the_last_numbers_and_goes_on_where_it_stopped():
    path = lines("test.jsonl", GSM8K)
    asked: list[str] = []

    def batcher(item):
        asked.extend(item["query"])
        return ["so 2 + 3 is\n#### 5.0", "It is \\boxed{1{,}200} of 2,400."][: len(item["query"])]

    result = evaluate_benchmark("gsm8k", path, batcher, "answers.jsonl")
    assert result.scores["accuracy"] == wilson(2, 2) and (result.rows, result.failed) == (2, 0)
    assert asked[0].startswith("2 apples") and "####" in asked[0] and len(asked) == 2
    again = evaluate_benchmark("gsm8k", path, batcher, "answers.jsonl")
    assert again.scores == result.scores and len(asked) == 2
    assert "gsm8k: accuracy 1.0000 (0.3424 to 1.0000); 2 rows; gsm8k|zero-shot" in str(result)


def test_a_row_that_failed_is_wrong_and_thoughts_are_not_read():
    path = lines("test.jsonl", [*GSM8K, GSM8K[0]])

    def batcher(item):
        if "Half" in item["query"][0]:
            raise ValueError("too long")
        return ["<think>7 or 8?</think>5"]

    result = evaluate_benchmark("gsm8k", path, batcher, "answers.jsonl", 1)
    assert result.failed == 1 and result.scores["accuracy"] == wilson(2, 3)
    assert str(result).startswith("gsm8k: accuracy 0.6667") and "1 failed" in str(result)


def test_mmlu_reads_tables_without_titles_by_subject_and_objects_with_numbers():
    table("test/sociology_test.csv", [["Who?", "Weber", "Bohr", "Gauss", "Bach", "A"]] * 3)
    table("test/astronomy_test.csv", [["Red?", "Venus", "Mars", "Earth", "Moon", "B"]])
    answers = saying("B", "The answer is (A).", "C. Gauss", "A or B")
    result = evaluate_benchmark("mmlu", "test", answers, "answers.jsonl")
    assert {s: g.value for s, g in result.groups.items()} == {"astronomy": 1.0, "sociology": 1 / 3}
    assert result.scores["accuracy"].value == 0.5
    assert result.scores["accuracy/groups"].value == pytest.approx(2 / 3)
    row = {"question": "Red?", "choices": ["Venus", "Mars", "Earth", "Moon"], "answer": 1}
    path = lines("rows.jsonl", [row | {"subject": "astronomy"}])
    result = evaluate_benchmark("mmlu", path, saying("Answer: B"), "more.jsonl")
    assert result.scores == {"accuracy": wilson(1, 1)}
    assert "Red?\nA. Venus\nB. Mars\nC. Earth\nD. Moon" in BENCHMARKS["mmlu"].question(row)


def test_ceval_is_asked_in_chinese_and_its_tests_without_answers_are_refused():
    titles = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
    table("val/physics_val.csv", [titles, [0, "光速?", "快", "慢", "零", "一", "A", ""]])
    result = evaluate_benchmark("ceval", "val", saying("分析……\n答案是A"), "answers.jsonl")
    assert result.scores["accuracy"].value == 1 and list(result.groups) == ["physics"]
    query = json.loads(Path("answers.jsonl").read_text("utf-8"))["query"]
    assert query.startswith("以下是一道单项选择题") and "A. 快" in query
    table("test/physics_test.csv", [titles[:6], [0, "光速?", "快", "慢", "零", "一"]])
    with pytest.raises(DataError, match="Files of tests without answers cannot be scored here"):
        evaluate_benchmark("ceval", "test", saying(), "none.jsonl")


def test_ifeval_counts_prompts_and_instructions_strictly_and_loosely():
    path = lines("input_data.jsonl", IFEVAL)
    answers = saying("Sure, here it is:\nHello to you", "no title")
    result = evaluate_benchmark("ifeval", path, answers, "answers.jsonl")
    shares = {name: (score.value, score.n) for name, score in result.scores.items()}
    assert shares == {
        "prompt/strict": (0.0, 2),
        "instruction/strict": (0.0, 3),  # a comma, 7 words, no title
        "prompt/loose": (0.5, 2),  # without the first line
        "instruction/loose": (pytest.approx(2 / 3), 3),
    }
    assert mark(IFEVAL[0], " ")["instruction/loose"] == (0, 2)  # nothing said follows nothing


@pytest.mark.parametrize(
    ("name", "given", "followed", "broken"),
    [
        ("keywords:existence", [["sea", "C++"]], "The SEA in C++", "the sea in C"),
        ("keywords:frequency", ["sea", 2, "at least"], "sea, seaside", "sea"),
        ("keywords:frequency", ["sea", 2, "less than"], "sea", "sea, seaside"),
        ("keywords:forbidden_words", [["art"]], "Start the party", "The Art."),
        ("keywords:letter_frequency", ["e", 3, "at least"], "Eleven bees", "be"),
        ("language:response_language", ["de"], "Das ist ein Satz wie jeder.", "It is a sentence."),
        ("length_constraints:number_sentences", [2, "at least"], "One. Two", "One of 3.5"),
        ("length_constraints:number_paragraphs", [2], "a\n***\nb", "a\n***\n***\nb"),
        ("length_constraints:number_paragraphs", [2], "***\na *** b\n***", "a\n\nb"),
        ("length_constraints:number_words", [3, "less than"], "don't", "one two three"),
        ("length_constraints:nth_paragraph_first_word", [2, 2, "yes"], 'a\n\n"Yes," b', "a\n\nno"),
        ("detectable_content:number_placeholders", [2], "[name] [place]", "[name]"),
        ("detectable_content:postscript", ["P.S."], "Bye\nP. S. more", "Bye. PS"),
        ("detectable_content:postscript", ["P.P.S"], "P.P.S more", "P.S. more"),
        ("detectable_format:number_bullet_lists", [2], "* a\n- b", "* a\n- b\n- c"),
        ("detectable_format:number_bullet_lists", [1], "**bold** text\n* a", "**bold** text"),
        ("detectable_format:constrained_response", [], "My answer is maybe.", "maybe"),
        ("detectable_format:number_highlighted_sections", [2], "*one* **two**", "*one* ** **"),
        ("detectable_format:multiple_sections", ["Part", 2], "Part 1 a Part 2 b", "Part 1"),
        ("detectable_format:json_format", [], '```JSON\n{"a": 1}\n```', "{'a': 1}"),
        ("detectable_format:title", [], "<<Joy>> and text", "<< >> text"),
        ("combination:two_responses", [], "a ****** b", "a ****** a"),
        ("combination:two_responses", [], "a\n******\nb", "a ****** b ****** c"),
        ("combination:repeat_prompt", ["Do it."], "do it. Well", "Well, do it."),
        ("startend:end_checker", ["Any more?"], 'So. any more?"', "Any more? Yes"),
        ("startend:quotation", [], ' "all of it" ', '"part" of it'),
        ("change_case:capital_word_frequency", [2, "at least"], "VERY GOOD day", "VERY good"),
        ("change_case:english_capital", [], "THIS IS WHAT WE SAID ABOUT IT", "This is it"),
        ("change_case:english_lowercase", [], "this is what we said about it", "This is it"),
        ("punctuation:no_comma", [], "a; b", "a, b"),
    ],
)  # fmt: skip
def test_an_instruction_is_followed_or_not(name, given, followed, broken):
    arguments = dict(zip(INSTRUCTIONS[name].needs, given, strict=True))
    assert follows(name, followed, arguments) and not follows(name, broken, arguments)


def test_all_published_instructions_are_known_and_sentences_are_counted():
    assert len(INSTRUCTIONS) == 25
    assert [sentences(t) for t in ("", "A. B! C?", "Dr. No", "好。是！", "Wait... what?")] == [
        0,
        3,
        2,
        2,
        2,
    ]


def test_a_language_needs_a_package_that_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "langdetect", None)
    with pytest.raises(MissingExtraError, match=r"langdetect.*\[verify\]"):
        follows("language:response_language", "Hello", {"language": "en"})


def test_a_predictor_is_asked_greedily_and_a_limit_spreads_over_the_rows(tiny_model_path):
    path = lines("test.jsonl", [{**GSM8K[0], "question": f"{i} and 1?"} for i in range(10)])
    predictor = Predictor(tiny_model_path)
    result = evaluate_benchmark("gsm8k", path, predictor, "a.jsonl", limit=3, max_new_tokens=4)
    found = [json.loads(line) for line in Path("a.jsonl").read_text("utf-8").splitlines()]
    assert [line["query"][0] for line in found] == ["0", "3", "6"] and result.rows == 3
    assert [line["response"] for line in found] == predictor(
        [line["query"] for line in found], max_new_tokens=4
    )


# -- what is refused


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("gsm8k", [{"question": "a?"}], "line 1: 'answer' is missing"),
        ("gsm8k", [{"question": "a?", "answer": "none"}], "'answer' ends with no number: 'none'"),
        ("mmlu", [{"question": "a?", "choices": ["x"], "answer": 0}], "must be a list of four"),
        ("mmlu", [{"question": "a?", "choices": list("wxyz"), "answer": 4}], "found 4"),
        (
            "ifeval",
            [IFEVAL[1] | {"instruction_id_list": ["detectable_format:titel"]}],
            "no instruction 'detectable_format:titel'. Did you mean 'detectable_format:title'",
        ),
        (
            "ifeval",
            [IFEVAL[0] | {"kwargs": [{}, {"relation": "more", "num_words": 5}]}],
            "relation='more' must be 'at least' or 'less than'",
        ),
        ("ifeval", [IFEVAL[0] | {"kwargs": [{}, {}]}], "needs 'num_words', a int; found None"),
        ("ifeval", [IFEVAL[0] | {"kwargs": [{}]}], "2 instructions have 1 entries in 'kwargs'"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_by_line(name, rows, message):
    path = lines("rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        evaluate_benchmark(name, path, saying(), "none.jsonl")
    assert not Path("none.jsonl").exists()


def test_an_unknown_benchmark_and_a_path_that_is_not_there_are_refused():
    with pytest.raises(ConfigError, match="no benchmark 'GSM-8K'; there are"):
        evaluate_benchmark("GSM-8K", "x", saying(), "none.jsonl")
    with pytest.raises(ConfigError, match="limit=0 must be 1 or more"):
        evaluate_benchmark("gsm8k", "x", saying(), "none.jsonl", limit=0)
    with pytest.raises(MissingFileError, match="x does not exist: give the benchmark's file"):
        evaluate_benchmark("gsm8k", "x", saying(), "none.jsonl")
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no file that ends with \.jsonl"):
        evaluate_benchmark("gsm8k", "empty", saying(), "none.jsonl")
