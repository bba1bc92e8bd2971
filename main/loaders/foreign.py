"""Rows of other libraries, one function a shape: (row) -> the same row with our names.

Every function raises DataError for what it cannot read, with the names of the row.
"""

import json
from collections.abc import Mapping
from typing import Any

from main.errors import DataError
from main.loaders.format import Row

VERSION = 1  # raised when the same rows would become other ones

Messages = list[Any]

_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    **{"system": "system", "function_call": "assistant"},
}


def openai(row: Row) -> Row:
    """{"messages": [...]}."""
    return _with(row, ["messages"], conversations=row["messages"])


def is_sharegpt(row: Row) -> bool:
    """Whether the first message has 'from' and 'value'."""
    found = row["conversations"]
    first = found[0] if isinstance(found, list) and found else None
    return isinstance(first, Mapping) and "from" in first


def sharegpt(row: Row) -> Row:
    """{"conversations": [{"from": "human", "value": ...}, ...], "system": ...}."""
    turns = _turns(row["conversations"], "conversations")
    return _with(row, [], conversations=turns)


def sharegpt_pair(row: Row) -> Row:
    """{"conversations": [...], "chosen": {"from": "gpt", "value": ...}, "rejected": {...}}."""
    prompt = row["conversations"]
    prompt = _turns(prompt, "conversations") if is_sharegpt(row) else prompt
    answers = (_answer_of(row, "chosen"), _answer_of(row, "rejected"))
    return _pair(row, ["chosen", "rejected"], prompt, *answers)


def alpaca(row: Row) -> Row:
    """{"instruction": ..., "input": ..., "output": ..., "history": [[question, answer], ...]}."""
    turns = _instruction(row)
    if "output" in row:  # a row that is only asked has none
        turns.append({"role": "assistant", "content": _text(row, "output")})
    return _with(row, ["instruction", "input", "output", "history"], conversations=turns)


def alpaca_pair(row: Row) -> Row:
    """{"instruction": ..., "input": ..., "chosen": ..., "rejected": ...}."""
    used = ["instruction", "input", "history", "chosen", "rejected"]
    return _pair(row, used, _instruction(row), _text(row, "chosen"), _text(row, "rejected"))


def completed(row: Row) -> Row:
    """{"prompt": ..., "completion": ...}: both messages, or both text: a question, its answer."""
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str) != isinstance(completion, str):
        raise DataError("'prompt' and 'completion' must both be strings or both be messages.")
    turns = [*_asked(row), *_listed(completion, "assistant", "completion")]
    return _with(row, ["prompt", "completion"], conversations=turns)


def pair(row: Row) -> Row:
    """{"prompt": ..., "chosen": ..., "rejected": ...}; or the two as whole dialogues."""
    chosen, rejected = row["chosen"], row["rejected"]
    used = ["prompt", "chosen", "rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:
        return _pair(row, used, _shared_prompt(row), chosen[-1:], rejected[-1:])
    if "prompt" not in row:
        raise DataError("'prompt' is missing, and 'chosen' and 'rejected' are no whole dialogues.")
    return _pair(row, used, _asked(row), chosen, rejected)


def asked(row: Row) -> Row:
    """A row of LLM_Chat as one of LLM_GRPO: its last answer is what rewards may compare with."""
    turns = row["conversations"]
    last = turns[-1] if isinstance(turns, list) and turns else None
    if not (isinstance(last, Mapping) and last.get("role") == "assistant"):
        return _with(row, ["conversations"], prompt=turns)
    return _with(row, ["conversations"], prompt=turns[:-1], answer=last.get("content"))


def _with(row: Row, used: list[str], **fields: Any) -> Row:
    """The row with new fields in the place of those used; tools as text become tools."""
    kept = {name: value for name, value in row.items() if name not in used}
    if isinstance(tools := kept.get("tools"), str):
        kept["tools"] = _json(tools, "tools") if tools.strip() else None
    return {**kept, **fields}


def _pair(row: Row, used: list[str], prompt: Messages, chosen: Any, rejected: Any) -> Row:
    answers = {
        "gold_answers": _answer(chosen, "chosen"),
        "bad_answers": _answer(rejected, "rejected"),
    }
    return _with(row, used, conversations=prompt, **answers)


def _answer(found: Any, name: str) -> str:
    """A text, or the text of one turn of the assistant's."""
    turns = found if isinstance(found, list) else [found]
    turn = turns[0] if len(turns) == 1 else None
    if isinstance(turn, Mapping) and turn.get("role") == "assistant" and not turn.get("tool_calls"):
        turn = turn.get("content")
    if isinstance(turn, str):
        return turn
    raise DataError(f"'{name}' must be a text, or one turn of the assistant's with a text.")


def _answer_of(row: Row, name: str) -> Any:
    found = row[name]
    return _turns([found], name) if isinstance(found, Mapping) and "from" in found else found


def _shared_prompt(row: Row) -> Messages:
    chosen, rejected, given = row["chosen"], row["rejected"], row.get("prompt")
    if chosen[:-1] != rejected[:-1]:
        raise DataError("'chosen' and 'rejected' must be the same dialogue but for the last turn.")
    turns = list(chosen[:-1])
    texts = [turn.get("content") for turn in turns if isinstance(turn, Mapping)]
    if given is None or given == turns or (isinstance(given, str) and given in texts):
        return turns
    raise DataError("'prompt' does not stand in the dialogues of 'chosen' and 'rejected'.")


def _asked(row: Row) -> Messages:
    return _listed(row["prompt"], "user", "prompt")


def _listed(found: Any, role: str, name: str) -> Messages:
    """Messages, or a text as the one message of a role."""
    if isinstance(found, str):
        return [{"role": role, "content": found}]
    if isinstance(found, list):
        return found
    raise DataError(f"'{name}' must be a string or messages; found {type(found).__name__}.")


def _instruction(row: Row) -> Messages:
    turns: Messages = []
    for i, exchange in enumerate(row.get("history") or []):
        if not (isinstance(exchange, list) and len(exchange) == 2):
            raise DataError(f"history[{i}] must be [question, answer].")
        for role, text in zip(("user", "assistant"), exchange, strict=True):
            turns.append({"role": role, "content": text})
    more = row.get("input")
    if not isinstance(more, str | None):
        raise DataError(f"'input' must be a string; found {type(more).__name__}.")
    texts = [_text(row, "instruction"), *([more] if more and more.strip() else [])]
    return [*turns, {"role": "user", "content": "\n".join(texts)}]


def _text(row: Row, name: str) -> str:
    if not isinstance(row[name], str):
        raise DataError(f"'{name}' must be a string; found {type(row[name]).__name__}.")
    if not row[name].strip():
        raise DataError(f"'{name}' is empty.")
    return str(row[name])


def _turns(found: Any, field: str) -> Messages:
    if not isinstance(found, list):
        raise DataError(f"'{field}' must be a list of messages; found {type(found).__name__}.")
    return [_turn(turn, f"{field}[{i}]") for i, turn in enumerate(found)]


def _turn(turn: Any, place: str) -> dict[str, Any]:
    if not (isinstance(turn, Mapping) and "from" in turn and "value" in turn):
        raise DataError(f"{place} must be an object with 'from' and 'value'.")
    if turn["from"] not in _ROLES:
        raise DataError(f"{place} is from {turn['from']!r}; known: {', '.join(_ROLES)}.")
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    role = _ROLES[turn["from"]]
    if turn["from"] != "function_call":
        return {"role": role, "content": turn["value"], **others}
    calls = _json(turn["value"], place)
    calls = [{"type": "function", "function": call} for call in _as_list(calls)]
    return {"role": role, "content": "", "tool_calls": calls, **others}


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _json(text: Any, place: str) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else text
    except ValueError:
        raise DataError(f"'{place}' is not JSON: {text[:60]!r}.") from None
