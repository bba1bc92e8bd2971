"""What a row asks, for the formats that hold it as messages or as text."""

from collections.abc import Collection, Mapping
from typing import Any

from main.dialogue.messages import WEIGHTS
from main.loaders.fields import dialogue_of, row_problems
from main.loaders.format import Question


def dialogue_question(
    row: Mapping[str, Any], field: str, read: Collection[str], gold: Any = None
) -> Question | list[str]:
    """A row's dialogue without its last answer, which is the gold one where the row gives no other.

    `read` are the fields with a meaning that the format honours.
    """
    messages = _without_weights(row[field])
    answered = _ends_with_answer(messages)
    question = messages[:-1] if answered else messages
    if answered and not question:
        return [f"'{field}' has an answer and no user turn before it."]
    asked = {**row, field: question}
    problems = row_problems(asked, field, "question", read)
    if problems:
        return problems
    if answered and gold is None:
        gold = messages[-1].get("content")
    dialogue = dialogue_of(asked, question)
    return Question(list(dialogue.messages), gold, dialogue.tools or None, dialogue.variables)


def _without_weights(messages: Any) -> Any:
    """Messages without what they count in training, which is nothing to somebody who asks."""
    if not isinstance(messages, list):
        return messages
    return [
        {k: v for k, v in m.items() if k not in WEIGHTS} if isinstance(m, Mapping) else m
        for m in messages
    ]


def text_question(text: Any, field: str, gold: Any = None) -> Question | list[str]:
    """Plain text."""
    if not isinstance(text, str):
        return [f"'{field}' must be a string; found {type(text).__name__}."]
    return Question(text, gold) if text.strip() else [f"'{field}' is empty."]


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"
