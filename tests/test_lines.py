"""Lines of a file of responses: columns of the row, numbers of NumPy, thoughts."""

import datetime
import json
from pathlib import Path

import numpy as np
import pytest

from main.errors import ConfigError, DataError
from main.evaluation.inferences import inference_with_data, inference_with_data_path
from main.evaluation.lines import Reply, split_thoughts


@pytest.fixture
def save(tmp_path):
    return tmp_path / "responses.jsonl"


def answer(rows, save, reply="re", **options):
    inference_with_data(rows, lambda item: [reply] * len(item["query"]), save, **options)
    return [json.loads(line) for line in save.read_text(encoding="utf-8").splitlines()]


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("row", "answer_of_it"),
    [
        ({"query": "q", "history": [], "answer": "g"}, "g"),
        ({"conversations": [user("q"), {"role": "assistant", "content": "g"}]}, "g"),
        ({"conversations": [user("q")], "gold_answers": ["g"], "bad_answers": "b"}, ["g"]),
        ({"prompt": "q", "anwer": "g"}, "g"),
        ({"context": "q", "target": "g"}, "g"),
        ({"prompt": "q", "completion": "g", "label": True}, "g"),
    ],
)
def test_columns_beside_question_and_gold_answer_are_kept(save, row, answer_of_it):
    (line,) = answer([{"id": 7, "level": "hard", **row, "tags": ["a", None]}], save)
    asked = {"idx", "query", "history", "response", "answer"}
    columns = {"id": 7, "level": "hard", "tags": ["a", None]}
    columns |= {name: row[name] for name in ("bad_answers", "label") if name in row}
    assert {name: value for name, value in line.items() if name not in asked} == columns
    assert (line["idx"], line["response"], line["answer"]) == (0, "re", answer_of_it)


def test_a_bad_answer_of_an_unpaired_row_stays_a_column(save):
    (line,) = answer([{"prompt": "q", "completion": "b", "label": False}], save)
    assert (line["completion"], "answer" in line) == ("b", False)


def test_a_column_equal_to_the_gold_answer_is_kept(save):
    (line,) = answer([{"query": "q", "answer": "yes", "human": "yes"}], save)
    assert line["human"] == "yes"


def test_columns_never_stand_for_what_a_line_says_itself(save, caplog):
    row = {"idx": 41, "query": "q", "response": "old", "error": "old", "thoughts": "old", "id": 1}
    (line,) = answer([row], save)
    assert line == {"idx": 0, "query": "q", "history": [], "response": "re", "id": 1}
    assert "not kept: 'idx', 'response', 'thoughts', 'error'" in caplog.text


def test_columns_of_a_file_are_kept_and_a_change_of_them_is_refused(tmp_path, save):
    data = tmp_path / "d.jsonl"
    data.write_text('{"query": "q", "id": 1}\n')
    inference_with_data_path(data, lambda item: ["re"], save)
    assert json.loads(save.read_text())["id"] == 1
    data.write_text('{"query": "q", "id": 2}\n')
    with pytest.raises(DataError, match="answers another question than row 0"):
        inference_with_data_path(data, lambda item: ["re"], save)


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists(save):
    row = {
        "query": "q",
        "answer": np.int64(42),
        "score": np.float32(0.5),
        "flag": np.bool_(True),
        "name": np.str_("x"),
        "vector": np.array([[1, 2], [3, 4]]),
        "day": datetime.date(2026, 1, 2),
        "file": Path("a/b"),
    }
    (line,) = answer([row], save)
    assert (line["answer"], line["score"], line["flag"], line["name"]) == (42, 0.5, True, "x")
    assert line["vector"] == [[1, 2], [3, 4]]
    assert (line["day"], line["file"]) == ("2026-01-02", "a/b")


def test_missing_values_of_pandas_are_null_and_no_line_breaks_json(save):
    row = {"query": "q", "a": float("nan"), "b": [np.float64("inf"), {"c": np.array([np.nan, 1])}]}
    (line,) = answer([row], save)
    assert (line["a"], line["b"]) == (None, [None, {"c": [None, 1]}])
    assert "NaN" not in save.read_text()
    answer([row], save)  # the same rows, not others


def circle() -> list:
    around: list = []
    around.append(around)
    return around


def test_a_row_without_a_form_in_json_is_refused_by_its_number(save):
    problems = {
        "row 2: not valid JSON: brackets are nested too deeply": circle(),
        "row 2: a number has more than 1000 digits; write it as text": 10**5000,
        r"row 2: a key must be a text; found \('a', 'b'\)": {("a", "b"): 1},
    }
    for problem, value in problems.items():
        with pytest.raises(DataError, match=problem):
            answer([{"query": "q"}, {"query": "q", "x": value}], save)
    assert not save.exists()


@pytest.mark.parametrize(
    ("response", "thoughts", "rest"),
    [
        ("<think>\n1 and 1\n</think>\n\nTwo.", "1 and 1", "Two."),
        ("1 and 1</think>Two.", "1 and 1", "Two."),  # the prompt opened the thought
        ("<think>1 and", "1 and", ""),  # cut short
        ("<think></think>Two.", "", "Two."),
        ("Two.", "", "Two."),
        ("  Two <think> tags.", "", "  Two <think> tags."),
    ],
)
def test_thoughts_are_split_off(response, thoughts, rest):
    assert split_thoughts(response) == Reply(rest, None, thoughts)


def test_thoughts_have_a_field_of_their_own_when_asked_for(save):
    text = "<think>hm</think>Two."
    (line,) = answer([{"query": "q"}], save, text, split_thoughts=True)
    assert (line["response"], line["thoughts"]) == ("Two.", "hm")
    with pytest.raises(ConfigError, match="was written with split_thoughts=True, and now it is"):
        answer([{"query": "q"}], save, text)
    (line,) = answer([{"query": "q"}], save, text, overwrite=True)
    assert (line["response"], "thoughts" in line) == (text, False)
