"""Where the assistant's turns stand in a rendered dialogue."""

import json
import re
from collections.abc import Sequence
from typing import Any

from main.errors import DataError
from main.loaders.layout import Layout, Render
from main.loaders.messages import TOOL_ROLES, text_of
from main.loaders.tokens import Spans
from main.vision import template_message

Messages = Sequence[dict[str, Any]]


def find_turns(text: str, messages: Messages, layout: Layout, render: Render) -> Spans:
    """Character spans of the assistant turns: from the first character that a model generates
    to the last of the text that ends the turn.

    Raises:
        DataError: a turn is not in the text as it stands in the row.
    """
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    starts = find_starts(text, messages, layout, render)
    limits = [*starts[1:], len(text)]
    _refuse_missing(text, messages)
    spans = []
    for turn, (place, start, limit) in enumerate(zip(places, starts, limits, strict=True)):
        limit = _before_result(text, messages[place + 1 : place + 2], start, limit)
        end = _find_end(text, messages[place], start, limit, layout)
        if end is None:
            raise DataError(
                f"the chat template does not write assistant turn {turn + 1} as it stands in the "
                f"row; it wrote {text[start : start + 80]!r}."
            )
        spans.append((start, end))
    return spans


def find_starts(
    text: str, messages: Messages, layout: Layout, render: Render, asks: bool = False
) -> list[int]:
    """Where each assistant turn begins, right after what the template writes to ask for it.

    Args:
        text: the rendered dialogue.
        asks: whether a generation prompt stands at its end.
    """
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if layout.header:
        places = [m.start() for m in re.finditer(re.escape(layout.header), text)]
        if len(places) == len(turns) + asks:
            return [place + _boundary(text, place, layout) for place in places[: len(turns)]]
    return [_start_by_prompt(text, list(messages[:turn]), layout, render) for turn in turns]


def _boundary(text: str, place: int, layout: Layout) -> int:
    """How much of the generation prompt stands at `place`."""
    return next(b for b in layout.boundaries if text.startswith(layout.generation[:b], place))


def _start_by_prompt(text: str, asked: list[dict[str, Any]], layout: Layout, render: Render) -> int:
    """The length of the prompt that asks for the turn, when the dialogue begins with it."""
    prompt = render(asked, True)
    rest = len(layout.generation)
    for boundary in layout.boundaries:
        start = len(prompt) - rest + boundary
        if text.startswith(prompt[:start]):
            return start
    raise DataError(
        "the chat template writes earlier turns differently once others follow, and its "
        "assistant turns do not begin with a special token, so they cannot be found."
    )


def _before_result(text: str, following: Messages, start: int, limit: int) -> int:
    """Where a tool's result stands, which must not be trained; else `limit`."""
    if not following or following[0]["role"] not in TOOL_ROLES:
        return limit
    result = (text_of(following[0]) or "").strip()
    place = text.rfind(result, start, limit) if result else -1
    return limit if place < 0 else place


def _find_end(
    text: str, message: dict[str, Any], start: int, limit: int, layout: Layout
) -> int | None:
    for found in layout.ends.finditer(text, start, limit):
        if _is_written(text[start : found.start()], message):
            return found.end()
    answer = _answer(message)
    place = text.find(answer, start, limit) if answer else -1
    return place + len(answer) if place >= 0 and limit < len(text) else None


def _is_written(turn: str, message: dict[str, Any]) -> bool:
    """Whether the text of a turn is complete: it ends with the answer or contains the last call."""
    calls = message.get("tool_calls")
    if calls:
        function = calls[-1].get("function", calls[-1])
        return str(function.get("name", "")) in turn
    return turn.rstrip().endswith(_answer(message))


def _answer(message: dict[str, Any]) -> str:
    """The text after the thinking: templates remove, move or trim what stands before it."""
    return (text_of(message) or "").rpartition("</think>")[2].strip()


def _refuse_missing(text: str, messages: Messages) -> None:
    for index, message in enumerate(messages):
        if message["role"] not in ("system", "user"):
            continue
        missing = [part for part in _texts(message) if part.strip() not in text]
        if missing:
            raise DataError(
                f"the chat template leaves out or changes turn {index + 1} ({message['role']}): "
                f"{missing[0].strip()[:60]!r}."
            )


def _texts(message: dict[str, Any]) -> list[str]:
    """The text of a message, or its pieces where images stand between them."""
    whole = text_of(message)
    if whole is not None:
        return [whole]
    return [part["text"] for part in message["content"] if isinstance(part.get("text"), str)]


def control_problem(messages: Messages, control: re.Pattern[str]) -> str:
    """One sentence when a text contains a control token, which would forge or end a turn."""
    for index, message in enumerate(messages):
        found = control.search(_everything(message))
        if found:
            return (
                f"turn {index + 1} ({message['role']}) contains the control token "
                f"{found.group()!r} as text, which the tokenizer would read as a real one; "
                "remove or rewrite it."
            )
    return ""


def _everything(message: dict[str, Any]) -> str:
    if set(message) <= {"role", "content"} and isinstance(message["content"], str):
        return message["content"]
    shown = template_message(message)  # without the sources of images
    return json.dumps([v for k, v in shown.items() if k != "role"], ensure_ascii=False)
