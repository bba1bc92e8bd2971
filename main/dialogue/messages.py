"""What a dialogue must look like: roles, their order, contents."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from main.dialogue.links import TOOL_ROLES, call_problems, kind_of, link_problems
from main.dialogue.normal import THOUGHT_KEYS
from main.options import nearest
from main.vision import VISUAL_TYPES, part_problem

ROLES = ("system", "user", "assistant", "tool", "observation", "developer")
SYSTEM_ROLES = ("system", "developer")
# What a turn, or all turns of a row, count in the loss: a number, or whether at all.
WEIGHTS = ("weight", "train", "loss")
_KEYS = (
    "role",
    "content",
    "name",
    "metadata",
    "tool_calls",
    "tool_call_id",
    *THOUGHT_KEYS,
    *WEIGHTS,
)
_TEXTS = ("name", "metadata", "tool_call_id", *THOUGHT_KEYS)
EndsWith = Literal["assistant", "question"]
_SHAREGPT = {"from", "value"}


def dialogue_problems(messages: Any, field: str, ends_with: EndsWith) -> list[str]:
    """Everything wrong with a list of messages, as sentences that begin with the place.

    Args:
        messages: the value found in the row.
        field: its name in the row, for the sentences.
        ends_with: whether the last turn has to be the assistant's (a dialogue to learn from) or
            must not be (a question to answer).
    """
    if not isinstance(messages, list):
        return [f"'{field}' must be a list of messages; found {kind_of(messages)}."]
    if not messages:
        return [f"'{field}' is empty; it needs at least a user turn."]
    problems = [
        problem
        for i, message in enumerate(messages)
        for problem in _message_problems(message, f"{field}[{i}]", ends_with)
    ]
    if problems:
        return problems
    links = [f"{field}[{i}]: {problem}" for i, problem in link_problems(messages)]
    return _order_problems(messages, field) + _last_problems(messages, field, ends_with) or links


def _message_problems(message: Any, place: str, ends_with: EndsWith) -> list[str]:
    if not isinstance(message, dict):
        return [f"{place} must be an object with 'role' and 'content'; found {kind_of(message)}."]
    if message.keys() >= _SHAREGPT:
        return [f"{place} has 'from' and 'value'; rename them to 'role' and 'content'."]
    problems = [f"{place} {problem}" for problem in key_problems(message)]
    problems += _role_problems(message, place) + _content_problems(message, place)
    problems += [f"{place} {problem}" for problem in call_problems(message)]
    return problems + _turn_weight_problems(message, place, ends_with)


def key_problems(message: Mapping[str, Any]) -> list[str]:
    """One sentence for every key that nothing here reads, and for every text that is none.

    Null and empty ones say nothing.
    """
    texts = [
        f"'{key}' must be a string; found {kind_of(message[key])}."
        for key in _TEXTS
        if not isinstance(message.get(key), str | None)
    ]
    return texts + [
        f"has the unknown key '{key}'; allowed: {', '.join(_KEYS)}.{nearest(key, _KEYS)}"
        for key, value in message.items()
        if key not in _KEYS and value not in (None, [], {})
    ]


def weight_of(owner: Mapping[str, Any]) -> float:
    """What a turn or a row counts in the loss, from its fields `WEIGHTS`; 1 where it has none."""
    if owner.get("train") is False or owner.get("loss") is False:
        return 0.0
    weight = owner.get("weight")
    return 1.0 if weight is None else float(weight)


def weight_problems(owner: Mapping[str, Any]) -> list[str]:
    """What is wrong with these fields of a turn or a row."""
    problems = [
        f"'{name}' must be true or false; found {owner[name]!r}."
        for name in ("train", "loss")
        if not isinstance(owner.get(name), bool | None)
    ]
    weight = owner.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 <= weight < math.inf):
        problems.append(f"'weight' must be a number >= 0; found {weight!r}.")
    if problems:
        return problems
    given = {name: bool(owner[name]) for name in WEIGHTS if owner.get(name) is not None}
    if len(set(given.values())) > 1:
        shown = " and ".join(f"'{name}' {owner[name]!r}" for name in given)
        return [f"{shown} contradict each other."]
    return []


def _turn_weight_problems(message: dict[str, Any], place: str, ends_with: EndsWith) -> list[str]:
    problems = [f"{place} {problem}" for problem in weight_problems(message)]
    given = [name for name in WEIGHTS if message.get(name) is not None]
    if problems or not given or not weight_of(message):
        return problems
    if ends_with == "question":
        return [f"{place} has '{given[0]}', and a prompt is not trained; leave it out."]
    if message.get("role") != "assistant":
        return [
            f"{place} has '{given[0]}', and only the assistant's turns are trained; leave it out."
        ]
    return []


def _role_problems(message: dict[str, Any], place: str) -> list[str]:
    if "role" not in message:
        return [f"{place} has no 'role'; found {sorted(message)}."]
    role = message["role"]
    if role in ROLES:
        return []
    hint = nearest(role, ROLES) if isinstance(role, str) else ""
    return [f"{place} has the role {role!r}; allowed: {', '.join(ROLES)}.{hint}"]


def _content_problems(message: dict[str, Any], place: str) -> list[str]:
    content, calls = message.get("content"), message.get("tool_calls")
    if calls and content in (None, ""):
        return []
    if "content" not in message:
        return [f"{place} has no 'content'; found {sorted(message)}."]
    if isinstance(content, list):
        return _part_problems(content, place) or _misplaced_images(message, place)
    if not isinstance(content, str):
        return [f"{place} 'content' must be a string; found {kind_of(content)}."]
    if message.get("role") == "assistant" and not content.strip():
        return [f"{place} is an empty assistant turn; there is nothing to learn: remove it."]
    return []


def _part_problems(parts: list[Any], place: str) -> list[str]:
    if not parts:
        return [f"{place} 'content' is an empty list; it needs at least one part."]
    problems = []
    for i, part in enumerate(parts):
        if isinstance(part, dict) and isinstance(part.get("type"), str):
            problem = part_problem(part)
        else:
            problem = f"must be an object with a 'type' such as 'text'; found {kind_of(part)}."
        problems += [f"{place} content[{i}] {problem}"] if problem else []
    return problems


def _misplaced_images(message: dict[str, Any], place: str) -> list[str]:
    found = [part["type"] for part in message["content"] if part["type"] in VISUAL_TYPES]
    if found and message.get("role") == "assistant":
        return [f"{place} is an assistant turn with a part of type '{found[0]}'; give it text."]
    return []


def _order_problems(messages: Sequence[dict[str, Any]], field: str) -> list[str]:
    problems = []
    previous = "start"
    for index, message in enumerate(messages):
        role = "tool" if message["role"] in TOOL_ROLES else message["role"]
        problem = _follows_wrongly(role, previous)
        if problem:
            problems.append(f"{field}[{index}]: {problem}")
        previous = role
    return problems


def _follows_wrongly(role: str, previous: str) -> str:
    """Why a turn of `role` may not follow one of `previous`, or ''."""
    if role == "system":
        return "" if previous == "start" else "a system turn may only come first."
    if role == "developer":
        first = previous in ("start", "system")
        return "" if first else "a developer turn may only come first, or after the system's."
    if previous in ("start", *SYSTEM_ROLES):
        return "" if role == "user" else f"the first turn must be the user's, not the {role}'s."
    if role == "tool":
        return "" if previous != "user" else "a tool turn must follow an assistant turn."
    return f"two {role} turns in a row; join them into one." if role == previous else ""


def _last_problems(messages: Sequence[dict[str, Any]], field: str, ends_with: str) -> list[str]:
    last = messages[-1]["role"]
    if ends_with == "question":
        if last in ("user", *TOOL_ROLES):
            return []
        return [f"'{field}' must end with a user (or tool) turn, not with the {last}'s."]
    if all(message["role"] != "assistant" for message in messages):
        return [f"'{field}' has no assistant turn; there is nothing to learn."]
    if last == "assistant":
        return []
    return [f"'{field}' must end with an assistant turn, not with the {last}'s."]


def text_of(message: dict[str, Any]) -> str | None:
    """The text of a message; parts joined; None when a part is not text (an image)."""
    content = message.get("content")
    if not isinstance(content, list):
        return content or ""
    texts = [part.get("text") for part in content]
    return "".join(texts) if all(isinstance(t, str) for t in texts) else None
