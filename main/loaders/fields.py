"""What a row of dialogues may have beside its messages, and the dialogue that all of it makes.

A field with a meaning is honoured by the formats that name it and refused by the others; fields
without one are named in the load report.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from main.dialogue.accounts import Dialogue
from main.dialogue.messages import (
    SYSTEM_ROLES,
    WEIGHTS,
    EndsWith,
    dialogue_problems,
    weight_of,
    weight_problems,
)
from main.dialogue.tools import tool_schemas
from main.errors import DataError
from main.vision import is_visual, part_problem

Row = Mapping[str, Any]
Messages = Sequence[Mapping[str, Any]]

VISUALS = {"images": "image", "videos": "video"}
# Of a whole dialogue, beside its messages.
DIALOGUE = ("system", "tools", "chat_template_kwargs")
MEANINGFUL = (*DIALOGUE, *VISUALS, "audios", "label", *WEIGHTS)
# In rows whose further columns belong to reward functions these are such columns.
OF_REWARDS = ("label", *WEIGHTS)
_PLACEHOLDER = re.compile(r"<(image|video)>\n?")


def row_problems(row: Row, field: str, ends_with: EndsWith, read: Collection[str]) -> list[str]:
    """Everything wrong with a dialogue and what stands beside it.

    Args:
        field: where its messages are.
        ends_with: see `dialogue_problems`.
        read: the fields with a meaning that the format honours.
    """
    messages = row[field]
    problems = field_problems(row, read)
    if not (isinstance(messages, list) and all(isinstance(m, Mapping) for m in messages)):
        return problems + dialogue_problems(messages, field, ends_with)
    if row.get("system") and messages and messages[0].get("role") in SYSTEM_ROLES:
        problems.append("'system' is given twice: as a field of the row and as its first turn.")
    try:
        messages = messages if problems else _with_visuals(row, messages)
    except DataError as error:
        problems.append(str(error))
    return problems or dialogue_problems(messages, field, ends_with)


def field_problems(row: Row, read: Collection[str]) -> list[str]:
    """Everything wrong with the fields that have a meaning; `read` are those of the format."""
    given = given_fields(row)
    problems = [
        f"'{name}' is not read in rows of this format; leave it out."
        for name in given
        if name not in read
    ]
    problems += weight_problems(row)
    return problems + [p for name in given if name in _CHECKS for p in _CHECKS[name](row)]


def given_fields(row: Row) -> list[str]:
    """The row's fields with a meaning; those that are null say nothing."""
    return [name for name in MEANINGFUL if row.get(name) is not None]


def without_rewards(row: Row) -> dict[str, Any]:
    """The row without what its reward functions alone read."""
    return {name: value for name, value in row.items() if name not in OF_REWARDS}


def dialogue_of(row: Row, messages: Messages) -> Dialogue:
    """The dialogue of a sound row: its system text, tools, pictures and weights in their places.

    Raises:
        DataError: as many placeholders as pictures are needed, and there are not.
    """
    messages = _with_system(row, _with_visuals(row, messages))
    if any(row.get(name) is not None for name in WEIGHTS):
        messages = [_weighted(message, weight_of(row)) for message in messages]
    return Dialogue(messages, tool_schemas(row.get("tools")), row.get("chat_template_kwargs"))


def visual_parts(row: Row) -> dict[str, list[Any]]:
    """The row's own lists of pictures and videos."""
    return {name: row[name] for name in VISUALS if isinstance(row.get(name), list)}


def _with_system(row: Row, messages: Messages) -> Messages:
    system = row.get("system")
    return [{"role": "system", "content": system}, *messages] if system else messages


def _weighted(message: Mapping[str, Any], weight: float) -> Mapping[str, Any]:
    if message["role"] != "assistant":
        return message
    bare = {key: value for key, value in message.items() if key not in WEIGHTS}
    return {**bare, "weight": weight * weight_of(message)}


def _with_visuals(row: Row, messages: Messages) -> Messages:
    """The messages with the row's pictures at their placeholders, one after the other.

    A placeholder is "<image>" or "<video>" in a text, or a part without a source. Without any, all
    pictures come before the text of the first user turn.
    """
    queues = {VISUALS[name]: list(sources) for name, sources in visual_parts(row).items()}
    given = {kind: len(queue) for kind, queue in queues.items()}
    if not any(given.values()):
        return messages
    wanted = _placeholders(messages)
    if not any(wanted.values()):
        return _in_front(messages, queues)
    for kind in ("image", "video"):
        if wanted[kind] != given.get(kind, 0):
            raise DataError(
                f"'{kind}s' has {given.get(kind, 0)} entries and the messages have "
                f"{wanted[kind]} places for them (<{kind}>); give as many of each."
            )
    return [_filled(message, queues) for message in messages]


def _placeholders(messages: Messages) -> dict[str, int]:
    found = {"image": 0, "video": 0}
    for message in filter(_asks, messages):
        for part in _parts(message.get("content")):
            if _is_open(part):
                found[part["type"]] += 1
            for match in _PLACEHOLDER.finditer(_text(part)):
                found[match[1]] += 1
    return found


def _in_front(messages: Messages, queues: Mapping[str, list[Any]]) -> Messages:
    parts = [{"type": kind, kind: source} for kind, queue in queues.items() for source in queue]
    place = next((i for i, m in enumerate(messages) if m.get("role") == "user"), None)
    if place is None:
        return messages
    first = messages[place]
    content = [*parts, *_parts(first.get("content"))]
    return [*messages[:place], {**first, "content": content}, *messages[place + 1 :]]


def _filled(message: Mapping[str, Any], queues: Mapping[str, list[Any]]) -> Mapping[str, Any]:
    content = message.get("content")
    if not (_asks(message) and any(_placeholders([message]).values())):
        return message
    parts: list[Any] = []
    for part in _parts(content):
        if _is_open(part):
            parts.append({**part, part["type"]: queues[part["type"]].pop(0)})
        elif _text(part):
            parts += _split(_text(part), queues)
        else:
            parts.append(part)
    return {**message, "content": parts}


def _split(text: str, queues: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """A text with placeholders -> texts and pictures in turn."""
    parts, position = [], 0
    for match in _PLACEHOLDER.finditer(text):
        before = text[position : match.start()]
        parts += [{"type": "text", "text": before}] if before else []
        parts.append({"type": match[1], match[1]: queues[match[1]].pop(0)})
        position = match.end()
    return [*parts, {"type": "text", "text": text[position:]}] if text[position:] else parts


def _asks(message: Mapping[str, Any]) -> bool:
    return message.get("role") != "assistant"


def _parts(content: Any) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return content if isinstance(content, list) else []


def _text(part: Any) -> str:
    found = part.get("text") if isinstance(part, Mapping) else part
    return found if isinstance(found, str) and not is_visual(part) else ""


def _is_open(part: Any) -> bool:
    """Whether a part stands for a picture that the row gives."""
    return (
        isinstance(part, Mapping)
        and part.get("type") in VISUALS.values()
        and part.get(part["type"]) is None
    )


def _system_problems(row: Row) -> list[str]:
    system = row["system"]
    if isinstance(system, str):
        return []
    return [f"'system' must be a string; found {type(system).__name__}."]


def _tool_problems(row: Row) -> list[str]:
    try:
        tool_schemas(row["tools"])
    except DataError as error:
        return [str(error)]
    return []


def _variable_problems(row: Row) -> list[str]:
    given = row["chat_template_kwargs"]
    if isinstance(given, Mapping) and all(isinstance(name, str) for name in given):
        return []
    return ["'chat_template_kwargs' must be an object such as {\"enable_thinking\": false}."]


def _visual_problems(name: str) -> Callable[[Row], list[str]]:
    def problems(row: Row) -> list[str]:
        sources, kind = row[name], VISUALS[name]
        if not isinstance(sources, list):
            return [f"'{name}' must be a list; found {type(sources).__name__}."]
        found = [part_problem({"type": kind, kind: source}) for source in sources]
        return [f"{name}[{i}]: {problem}" for i, problem in enumerate(found) if problem]

    return problems


_CHECKS: dict[str, Callable[[Row], list[str]]] = {
    "system": _system_problems,
    "tools": _tool_problems,
    "chat_template_kwargs": _variable_problems,
    **{name: _visual_problems(name) for name in VISUALS},
}
