"""GRPO rows: {"prompt": [messages] or "text", "answer": ..., ...}; other columns go to the rewards.

The guide's misspelt "anwer" is read as "answer". A string as prompt is plain text, as in TRL.
"""

import json
from collections.abc import Iterator, Sequence

from main.errors import DataError
from main.loaders.format import Format, Numbered, Row, missing
from main.loaders.messages import dialogue_problems
from main.loaders.plain import PlainText
from main.loaders.report import Fate, Report
from main.loaders.template import ChatTemplate
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
        problems += dialogue_problems(prompt, "prompt", "question")
    return problems


def encode(
    rows: Sequence[Numbered],
    template: ChatTemplate | PlainText,
    max_length: int | None,
    report: Report,
) -> Iterator[Row]:
    """Prompt ids, with the prompt and the row's other columns as JSON; see `Format.encode`."""
    for number, row in rows:
        try:
            ids, fate = _prompt_ids(row["prompt"], template, max_length)
        except DataError as error:
            report.refuse(number, [f"'prompt': {error}"])
            continue
        report.note(number, fate)
        if ids is not None:
            yield {
                "prompt_ids": ids,
                "prompt": json.dumps(row["prompt"], ensure_ascii=False),
                "columns": json.dumps(columns(row), ensure_ascii=False),
                "length": len(ids),
                "row": number,
            }


def columns(row: Row) -> Row:
    """What reward functions receive beside prompts and completions."""
    named = {"answer" if name == "anwer" else name: value for name, value in row.items()}
    return {name: value for name, value in named.items() if name != "prompt"}


def _prompt_ids(
    prompt: str | list, template: ChatTemplate | PlainText, max_length: int | None
) -> tuple[list[int] | None, Fate]:
    problem = template.control_problem(prompt)
    if problem:
        raise DataError(problem)
    if isinstance(template, ChatTemplate) and not isinstance(prompt, str):
        return fit_prompt(prompt, template, max_length)
    ids = template.encode_prompt(prompt)
    return (ids, "") if max_length is None or len(ids) < max_length else (None, "skipped")


FORMAT = Format(
    "grpo",
    1,
    {
        "prompt_ids": ["int32"],
        "prompt": "string",
        "columns": "string",
        "length": "int32",
        "row": "int64",
    },
    validate,
    encode,
)
