"""GRPO rows: {"prompt": [messages] or "text", "answer": ..., ...}; other columns go to the rewards.

The guide's misspelt "anwer" is read as "answer". A string as prompt is plain text, as in TRL.
"""

import json
from collections.abc import Iterator, Sequence

from main.dialogue.accounts import Dialogue
from main.dialogue.plain import PlainText
from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.loaders.fields import (
    DIALOGUE,
    dialogue_of,
    given_fields,
    row_problems,
    without_rewards,
)
from main.loaders.format import Format, Numbered, Question, Row, missing
from main.loaders.question import dialogue_question, text_question
from main.loaders.report import Fate, Report
from main.loaders.truncate import fit_prompt


def validate(row: Row) -> list[str]:
    """Everything wrong with a GRPO row."""
    problems = missing(row, ["prompt"])
    if "answer" in row and "anwer" in row:
        problems.append("'answer' and 'anwer' are the same field; give one of them.")
    prompt = row.get("prompt")
    if "prompt" in row and not isinstance(prompt, str | list):
        kind = type(prompt).__name__
        problems.append(f"'prompt' must be a list of messages or a string; found {kind}.")
    if isinstance(prompt, str) and not prompt.strip():
        problems.append("'prompt' is empty.")
    if isinstance(prompt, list):
        problems += row_problems(without_rewards(row), "prompt", "question", DIALOGUE)
    if isinstance(prompt, str):
        problems += _plain_problems(without_rewards(row))
    return problems


def encode(
    rows: Sequence[Numbered],
    template: ChatTemplate | PlainText,
    max_length: int | None,
    report: Report,
) -> Iterator[Row]:
    """Prompt ids, with the prompt and the row's other columns as JSON; see `Format.encode`."""
    for number, row in rows:
        prompt = row["prompt"]
        dialogue = dialogue_of(without_rewards(row), prompt) if isinstance(prompt, list) else None
        try:
            ids, fate = _prompt_ids(dialogue or prompt, template, max_length)
        except DataError as error:
            report.refuse(number, [f"'prompt': {error}"])
            continue
        report.note(number, fate)
        if ids is not None:
            yield {
                "prompt_ids": ids,
                "prompt": json.dumps(dialogue.messages if dialogue else prompt, ensure_ascii=False),
                "columns": json.dumps(columns(row), ensure_ascii=False),
                "length": len(ids),
                "row": number,
            }


def question(row: Row) -> Question | list[str]:
    """The prompt; a gold answer is read under both of its names."""
    gold = row.get("answer", row.get("anwer"))
    if isinstance(row["prompt"], list):
        return dialogue_question(without_rewards(row), "prompt", DIALOGUE, gold)
    return _plain_problems(without_rewards(row)) or text_question(row["prompt"], "prompt", gold)


def columns(row: Row) -> Row:
    """What reward functions receive beside prompts and completions."""
    named = {"answer" if name == "anwer" else name: value for name, value in row.items()}
    return {name: value for name, value in named.items() if name != "prompt"}


def _plain_problems(row: Row) -> list[str]:
    return [
        f"'{name}' needs a prompt of messages: a prompt of plain text uses no chat template."
        for name in given_fields(row)
    ]


def _prompt_ids(
    prompt: str | Dialogue, template: ChatTemplate | PlainText, max_length: int | None
) -> tuple[list[int] | None, Fate]:
    if isinstance(template, ChatTemplate) and isinstance(prompt, Dialogue):
        problem = template.control_problem(prompt.messages, prompt.tools)
        if problem:
            raise DataError(problem)
        return fit_prompt(prompt, template, max_length)
    ids = template.encode_prompt(prompt if isinstance(prompt, str) else prompt.messages)
    return (ids, "") if max_length is None or len(ids) < max_length else (None, "skipped")


FORMAT = Format(
    "grpo",
    4,
    {
        "prompt_ids": ["int32"],
        "prompt": "string",
        "columns": "string",
        "length": "int32",
        "row": "int64",
    },
    validate,
    encode,
    [("prompt",)],
    question,
    "either",
)
