"""Unpaired rows: a prompt, one answer, and whether it is good."""

from typing import Any

import pytest
from chat_templates import chat

from main.loaders import get_loader, kto
from main.loaders.report import Report

GOOD: dict[str, Any] = {
    "conversations": [{"role": "user", "content": "Two and two?"}],
    "answer": "Four.",
    "label": True,
}


def encoded(row, max_length=None):
    report = Report()
    return list(kto.encode([(3, row)], chat("smollm2"), max_length, report)), report


def test_the_prompt_ends_where_the_answer_begins():
    template = chat("smollm2")
    (record,), _ = encoded(GOOD)
    assert record["prompt_ids"] == template.encode_prompt(GOOD["conversations"])
    assert template.tokenizer.decode(record["answer_ids"]) == "Four.<|im_end|>"
    assert record["label"] is True and record["row"] == 3
    assert record["length"] == len(record["prompt_ids"]) + len(record["answer_ids"])


def test_the_names_of_trl_mean_the_same():
    trl = {"prompt": "Two and two?", "completion": "Four.", "label": True}
    assert get_loader("LLM_KTO").validate(trl) == []
    assert encoded(trl)[0] == encoded(GOOD)[0]


def test_a_prompt_without_room_for_an_answer_is_skipped():
    records, report = encoded(GOOD, max_length=8)
    assert records == [] and report.fates["skipped"] == (1, [3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "'answer' must be a non-empty string; found None."),
        ({"answer": " "}, "'answer' must be a non-empty string; found ' '."),
        ({"label": 1}, "'label' must be true or false; found 1."),
        ({"conversations": ""}, "'conversations' is empty."),
        ({"conversations": []}, "'conversations' is empty; it needs at least a user turn."),
        ({"completion": "x"}, "'answer' and 'completion' are the same field; give one of them."),
    ],
)
def test_a_bad_row_is_explained(change, message):
    assert message in get_loader("LLM_KTO").validate(GOOD | change)


@pytest.mark.parametrize("name", ["conversations", "answer", "label"])
def test_a_missing_field_names_what_there_is(name):
    row = {key: value for key, value in GOOD.items() if key != name}
    (problem,) = get_loader("LLM_KTO").validate(row)
    assert problem.startswith(f"'{name}'") and f"is missing; found {sorted(row)}." in problem
