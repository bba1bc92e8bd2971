"""Unpaired rows: {"conversations": [...], "answer": "...", "label": true}; true = a good answer.

The names of TRL are read too: "prompt" (messages, or a string: one user turn) and "completion".
"""

from collections.abc import Iterator, Sequence
from typing import Any

from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.loaders.fields import DIALOGUE, dialogue_of, row_problems
from main.loaders.format import Format, Numbered, Question, Row
from main.loaders.question import dialogue_question
from main.loaders.report import Report
from main.loaders.truncate import encode_answers

_NAMES = {"conversations": "prompt", "answer": "completion", "label": "label"}
_READ = (*DIALOGUE, "label")


def validate(row: Row) -> list[str]:
    """Everything wrong with an unpaired row."""
    problems = []
    for name, other in _NAMES.items():
        if name not in row and other not in row:
            hint = "" if name == other else f" (or '{other}')"
            problems.append(f"'{name}'{hint} is missing; found {sorted(row)}.")
        if name != other and name in row and other in row:
            problems.append(f"'{name}' and '{other}' are the same field; give one of them.")
    return problems or _value_problems(row)


def encode(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[Row]:
    """One record a row; see `Format.encode`."""
    for number, row in rows:
        messages, answer = _messages(_field(row, "conversations")[1]), _field(row, "answer")[1]
        try:
            dialogue = dialogue_of(row, messages)
            answers, fate = encode_answers(dialogue, [answer], template, max_length)
        except DataError as error:
            report.refuse(number, [str(error)])
            continue
        report.note(number, fate)  # type: ignore[arg-type]
        if answers is not None:
            yield {
                "prompt_ids": answers.prompt_ids,
                "answer_ids": answers.completion_ids[0],
                "label": row["label"],
                "length": len(answers.prompt_ids) + len(answers.completion_ids[0]),
                "row": number,
            }


def question(row: Row) -> Question | list[str]:
    """The dialogue; the answer is gold where it is labelled as good."""
    name, prompt = _field(row, "conversations")
    gold = _field(row, "answer")[1] if row["label"] is True else None
    return dialogue_question({**row, name: _messages(prompt)}, name, _READ, gold)


def _field(row: Row, name: str) -> tuple[str, Any]:
    """(the name that the row gives the field, its value)."""
    found = name if name in row else _NAMES[name]
    return found, row[found]


def _messages(prompt: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _value_problems(row: Row) -> list[str]:
    name, prompt = _field(row, "conversations")
    problems = []
    if isinstance(prompt, str) and not prompt.strip():
        problems.append(f"'{name}' is empty.")
    else:
        problems += row_problems({**row, name: _messages(prompt)}, name, "question", _READ)
    name, answer = _field(row, "answer")
    if not (isinstance(answer, str) and answer.strip()):
        problems.append(f"'{name}' must be a non-empty string; found {answer!r}.")
    if not isinstance(row["label"], bool):
        problems.append(f"'label' must be true or false; found {row['label']!r}.")
    return problems


FORMAT = Format(
    "unpaired",
    4,
    {
        "prompt_ids": ["int32"],
        "answer_ids": ["int32"],
        "label": "bool",
        "length": "int32",
        "row": "int64",
    },
    validate,
    encode,
    [tuple(_NAMES), tuple(_NAMES.values())],
    question,
    fields=frozenset({*_NAMES, *_NAMES.values(), *_READ}),
)
