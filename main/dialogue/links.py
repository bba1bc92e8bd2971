"""Calls of tools and their results: what a call must look like, and which result answers which."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from main.options import shown

Message = Mapping[str, Any]

TOOL_ROLES = ("tool", "observation")


def call_problems(message: Message) -> list[str]:
    """What is wrong with the `tool_calls` of one message."""
    calls = message.get("tool_calls")
    if not calls:
        return []
    if message.get("role") != "assistant":
        return [
            f"'tool_calls' in a turn of role {message.get('role')!r}; only the assistant calls."
        ]
    if not isinstance(calls, list | tuple):
        return [f"'tool_calls' must be a list of calls; found {kind_of(calls)}."]
    problems = [
        f"tool_calls[{i}] {problem}" for i, call in enumerate(calls) for problem in _wrong(call)
    ]
    ids = [] if problems else [call["id"] for call in calls if call.get("id") is not None]
    double = next((name for i, name in enumerate(ids) if name in ids[:i]), None)
    if double is not None:
        problems.append(f"two calls of 'tool_calls' have the id {double!r}; a result names one.")
    return problems


def _wrong(call: Any) -> list[str]:
    if not isinstance(call, Mapping):
        return [f"must be an object with a 'function'; found {kind_of(call)}."]
    if call.get("type") not in (None, "function"):
        return [f"has the type {call['type']!r}; only 'function' is a call that can be written."]
    if not isinstance(call.get("id"), str | None):
        return [f"'id' must be a string; found {kind_of(call['id'])}."]
    function = call.get("function") or call
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        return ["has no 'name' of the function that is called."]
    given = arguments_of(function)
    if not isinstance(given, Mapping):
        return [
            "'arguments' must be an object, or the JSON text of one; "
            f"found {kind_of(function['arguments'])}."
        ]
    return []


def arguments_of(function: Mapping[str, Any]) -> Any:
    """Those of a call as an object, written as JSON or not; as they are where they are none."""
    given = function.get("arguments")
    if given is None or given == "":
        return {}
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


def link_problems(messages: Sequence[Message]) -> list[tuple[int, str]]:
    """(number of the message, what is wrong) for each result that answers no call before it.

    A result says by `tool_call_id`, or by its order, which call of the turn before it answers. A
    turn without `tool_calls` has its calls in its text, where they are not looked for.
    """
    problems: list[tuple[int, str]] = []
    for caller, results in _exchanges(messages):
        calls = messages[caller].get("tool_calls") or ()
        for index, problem in _unanswered(calls, [messages[i] for i in results]):
            problems.append((results[index], problem))
    return problems


def _exchanges(messages: Sequence[Message]) -> Iterable[tuple[int, list[int]]]:
    """Each assistant turn that results follow, and those."""
    caller, results = -1, list[int]()
    for i, message in enumerate([*messages, {"role": "end"}]):
        if message["role"] in TOOL_ROLES:
            results.append(i)
            continue
        if results and caller >= 0:
            yield caller, results
        caller, results = (i if message["role"] == "assistant" else -1), []


def _unanswered(calls: Sequence[Any], results: Sequence[Message]) -> Iterable[tuple[int, str]]:
    ids = [call.get("id") for call in calls]
    names = [(call.get("function") or call)["name"] for call in calls]
    seen: list[Any] = []
    for i, result in enumerate(results):
        said, name = result.get("tool_call_id"), result.get("name")
        if said is not None and said not in ids and (not calls or any(ids)):
            yield i, f"'tool_call_id' {said!r} is none of the calls before it: {_listed(ids)}."
        elif said is not None and said in seen:
            yield i, f"a second result of the call {said!r}."
        elif calls and i >= len(calls):
            yield i, f"result number {i + 1} of {len(calls)} call{'s' * (len(calls) > 1)}."
        elif calls and name is not None:
            wanted = [names[ids.index(said)]] if said in ids and said is not None else names
            if name not in wanted:
                yield i, f"a result of {name!r}, and what was called is {_listed(wanted)}."
        seen.append(said)


def in_order_of_calls(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, results of parallel calls in the order of their calls.

    Most templates write no ids, and leave it to the order to say which result is whose.
    """
    ordered = list(messages)
    for caller, results in _exchanges(messages):
        ids = [call.get("id") for call in messages[caller].get("tool_calls") or ()]
        said = [messages[i].get("tool_call_id") for i in results]
        if len(results) > 1 and None not in said and all(name in ids for name in said):
            whose = sorted(results, key=lambda i: ids.index(messages[i]["tool_call_id"]))
            for i, source in zip(results, whose, strict=True):
                ordered[i] = messages[source]
    return ordered


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(repr(name) for name in names if name is not None) or "none has an id"


def kind_of(value: Any) -> str:
    """The type of a wrong value and its beginning, for messages."""
    return f"{type(value).__name__} {shown(value, 40)}"
