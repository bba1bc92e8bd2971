"""Preference rows: {"conversations": [...], "gold_answers": ..., "bad_answers": ...}.

Either field of answers is a string or a list of strings. LLM_DPO makes one pair of every gold with
every bad answer of a row; LLM_RLHF keeps the answers of a row together, as text and as ids.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from main.dialogue.accounts import Dialogue
from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.loaders.fields import DIALOGUE, dialogue_of, row_problems, without_rewards
from main.loaders.format import Format, Numbered, Question, Row, missing
from main.loaders.question import dialogue_question
from main.loaders.report import Report
from main.loaders.truncate import Answers, encode_answers

_FIELDS = ("conversations", "gold_answers", "bad_answers")


def validate_rewarded(row: Row) -> list[str]:
    """Everything wrong with a row of LLM_RLHF, whose other columns the reward functions read."""
    return validate(without_rewards(row))


def validate(row: Row) -> list[str]:
    """Everything wrong with a preference row."""
    problems = missing(row, _FIELDS)
    if "conversations" in row:
        problems += row_problems(row, "conversations", "question", DIALOGUE)
    answers = [name for name in _FIELDS[1:] if name in row]
    for name in answers:
        problems += _answer_problems(row[name], name)
    return problems or _tie_problems(row)


def encode_pairs(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[Row]:
    """LLM_DPO: one record for every gold x bad answer."""
    for number, row, answers in _encoded(rows, template, max_length, report):
        golds = answers.completion_ids[: len(listed(row["gold_answers"]))]
        bads = answers.completion_ids[len(golds) :]
        for chosen in golds:
            for rejected in bads:
                yield {
                    "prompt_ids": answers.prompt_ids,
                    "chosen_ids": chosen,
                    "rejected_ids": rejected,
                    "length": len(answers.prompt_ids) + max(len(chosen), len(rejected)),
                    "row": number,
                }


def encode_rewarded(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[Row]:
    """LLM_RLHF: one record a row; its question and further fields as JSON, for reward functions."""
    for number, row, answers in _encoded(rows, template, max_length, report):
        messages = _dialogue(row).messages
        others = {name: value for name, value in row.items() if name not in _FIELDS}
        gold, bad = listed(row["gold_answers"]), listed(row["bad_answers"])
        yield {
            "prompt_ids": answers.prompt_ids,
            "prompt": json.dumps(messages, ensure_ascii=False),
            "columns": json.dumps(others, ensure_ascii=False),
            "gold": gold,
            "bad": bad,
            "gold_ids": answers.completion_ids[: len(gold)],
            "bad_ids": answers.completion_ids[len(gold) :],
            "length": len(answers.prompt_ids) + max(map(len, answers.completion_ids)),
            "row": number,
        }


def question(row: Row) -> Question | list[str]:
    """The dialogue, to which the gold answers belong."""
    return dialogue_question(row, "conversations", DIALOGUE, row.get("gold_answers"))


def listed(answers: str | list[str]) -> list[str]:
    """One answer or several, as a list."""
    return [answers] if isinstance(answers, str) else answers


def _dialogue(row: Row) -> Dialogue:
    return dialogue_of(without_rewards(row), row["conversations"])


def _encoded(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[tuple[int, Row, Answers]]:
    for number, row in rows:
        texts = [*listed(row["gold_answers"]), *listed(row["bad_answers"])]
        try:
            answers, fate = encode_answers(_dialogue(row), texts, template, max_length)
        except DataError as error:
            report.refuse(number, [str(error)])
            continue
        report.note(number, fate)
        if answers is not None:
            yield number, row, answers


def _answer_problems(answers: Any, name: str) -> list[str]:
    if isinstance(answers, str):
        return [] if answers.strip() else [f"'{name}' is empty."]
    if not isinstance(answers, list):
        kind = type(answers).__name__
        return [f"'{name}' must be a string or a list of strings; found {kind}."]
    if not answers:
        return [f"'{name}' is an empty list; it needs at least one answer."]
    return [
        f"{name}[{i}] must be a non-empty string; found {answer!r}."
        for i, answer in enumerate(answers)
        if not (isinstance(answer, str) and answer.strip())
    ]


def _tie_problems(row: Row) -> list[str]:
    both = set(listed(row["gold_answers"])) & set(listed(row["bad_answers"]))
    return [f"the answer {sorted(both)[0][:60]!r} is both gold and bad." for _ in sorted(both)[:1]]


_ANSWER_IDS = ["int32"]
_MARKS = [_FIELDS, _FIELDS[:2]]
PAIRS = Format(
    "pairs",
    4,
    {
        "prompt_ids": ["int32"],
        "chosen_ids": _ANSWER_IDS,
        "rejected_ids": _ANSWER_IDS,
        "length": "int32",
        "row": "int64",
    },
    validate,
    encode_pairs,
    _MARKS,
    question,
    fields=frozenset({*_FIELDS, *DIALOGUE}),
)
REWARDED = Format(
    "rewarded",
    5,
    {
        "prompt_ids": ["int32"],
        "prompt": "string",
        "columns": "string",
        "gold": ["string"],
        "bad": ["string"],
        "gold_ids": [_ANSWER_IDS],
        "bad_ids": [_ANSWER_IDS],
        "length": "int32",
        "row": "int64",
    },
    validate_rewarded,
    encode_rewarded,
    _MARKS,
    question,
)
