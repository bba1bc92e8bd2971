"""What callers may pass, and what may lie in a row: strategies for property-based tests.

`holds` runs a property; the short share of `make test` draws the same examples each time, the long
one others at each run, and prints what repeats a failure.
"""

import copy
import os
import types
import typing
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def how_many(short: int, long: int) -> Any:
    """A test twice: with few examples, and under the marker `long` with many."""
    return pytest.mark.parametrize("examples", [short, pytest.param(long, marks=pytest.mark.long)])


def holds(check: Callable[..., Any], examples: int, **strategies: Any) -> None:
    """Look for arguments for which `check` raises."""
    short = "PYTEST_CURRENT_TEST" in os.environ and examples < 500
    found = settings(
        max_examples=examples,
        derandomize=short,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=SLOW,
    )
    found(given(**strategies)(check))()


def _generator() -> Any:
    yield "text"


CHARACTERS = st.one_of(
    st.characters(exclude_categories=()),
    st.sampled_from("\ud83d\udc00\0\u2028\ufeff\u0301\u200d\r\n\t <>{}\"'\\%🙂长é"),
)
TEXT = st.text(CHARACTERS, max_size=12)
WORDS = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "text",
        "none",
        "user",
        "assistant",
        "system",
        "all-linear",
        "auto",
        "../x",
        "a" * 6000,
    ]
)
NUMBERS = st.one_of(
    st.integers(-3, 40),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, -(2**63) - 1, 0, 1]),
    st.floats(),
    st.builds(lambda: 10**5000),  # longer than Python writes out
    st.sampled_from([1e308, 5e-324, float("nan"), float("inf"), -0.0, 1.5, 1 + 2j]),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, TEXT)
ODD = st.one_of(
    st.binary(max_size=4),
    st.builds(bytearray, st.binary(max_size=2)),
    st.sampled_from([Path("x"), Path("."), timedelta(1), int, print, np.float32(2.5), np.int64(3)]),
    st.sampled_from([np.bool_(True), np.str_("text"), np.array([1, 2]), np.array(["no", "x"])]),
    st.sampled_from([torch.tensor(3), torch.tensor([1.0, 2.0]), torch.tensor([]), torch.float32]),
    st.builds(set, st.lists(WORDS, max_size=2)),
    st.builds(_generator),
    st.builds(object),
)
KEYS = st.one_of(WORDS, TEXT, st.integers(0, 3), st.none(), st.tuples(st.integers(0, 1)))
ANYTHING = st.recursive(
    st.one_of(PLAIN, ODD),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=8,
)


def of_hint(hint: Any) -> st.SearchStrategy[Any]:
    """Values that a field of this type takes, likely and unlikely ones."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return st.sampled_from(inside[1].names)
    if origin in (typing.Union, types.UnionType):
        return st.one_of(*map(of_hint, inside))
    if origin is typing.Literal:
        return st.sampled_from(inside)
    return _BY_TYPE.get(origin or hint, ANYTHING)


_ENTRIES = st.one_of(WORDS, TEXT, st.integers(-2, 5), st.floats(), ANYTHING)
_BY_TYPE: dict[Any, st.SearchStrategy[Any]] = {
    type(None): st.none(),
    bool: st.booleans(),
    int: st.one_of(st.integers(-2, 40), NUMBERS.filter(lambda n: isinstance(n, int))),
    float: st.one_of(st.floats(0, 1), st.floats(), NUMBERS),
    str: st.one_of(WORDS, TEXT),
    Path: st.one_of(WORDS, TEXT).map(Path),
    list: st.lists(_ENTRIES, max_size=3),
    tuple: st.lists(_ENTRIES, max_size=3).map(tuple),
    dict: st.dictionaries(st.one_of(WORDS, TEXT), ANYTHING, max_size=3),
}


# -- rows

_SAID = st.one_of(TEXT, st.sampled_from(["<|im_end|>", "<think>a</think>b", "<image>", "{{ x }}"]))
_SCHEMA = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def _turns(last: str) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How far?"},
        {"role": "assistant", "content": None, "tool_calls": [_CALL], "reasoning_content": "Ask."},
        {"role": "tool", "content": "ten", "tool_call_id": "c1", "name": "f"},
        {"role": "assistant", "content": "Ten miles."},
        {"role": "user", "content": [{"type": "text", "text": "And back?"}]},
        {"role": "assistant", "content": "<think>\nTwice.\n</think>\n\nTwenty.", "weight": 0.5},
    ]
    return turns if last == "assistant" else turns[:-1]


_PLAIN = [{"role": "user", "content": "How far?"}, {"role": "assistant", "content": "Ten."}]
_PLAIN = [
    *_PLAIN,
    {"role": "user", "content": "And back?"},
    {"role": "assistant", "content": "20."},
]
_BESIDE = {"tools": [_SCHEMA], "chat_template_kwargs": {"enable_thinking": False}, "system": None}
_ANSWERS = {"gold_answers": ["a", "b"], "bad_answers": "c"}
_ASKED = {"conversations": _PLAIN[:3]}
_CHAT: list[dict[str, Any]] = [
    {"conversations": _turns("assistant"), "weight": 1, **_BESIDE},
    {"conversations": _PLAIN, "system": "Be brief.", "train": True},
]
_PURE = [{"context": "Once", "target": "upon a time", "weight": 2.0}]
SOUND: dict[str, list[dict[str, Any]]] = {
    "LLM_Chat": _CHAT,
    "ChatGLM_Chat": _CHAT,
    "LLM_Pure": _PURE,
    "ChatGLM_LoRA": _PURE,
    "LLM_GRPO": [
        {"prompt": _turns("user"), "answer": "20", "level": [1, {"x": None}], **_BESIDE},
        {"prompt": _PLAIN[:3], "anwer": ["20"], "label": 3},
        {"prompt": "Once upon", "answer": 1.5},
    ],
    "LLM_DPO": [{"conversations": _turns("user"), **_ANSWERS, **_BESIDE}, {**_ASKED, **_ANSWERS}],
    "LLM_RLHF": [{"conversations": _turns("user"), **_ANSWERS}, {**_ASKED, **_ANSWERS, "n": 1}],
    "LLM_KTO": [
        {"conversations": _turns("user"), "answer": "a", "label": True, **_BESIDE},
        {"prompt": "How far?", "completion": "Ten.", "label": False},
    ],
}


@st.composite
def rows(draw: st.DrawFn, loader: str) -> dict[str, Any]:
    """A sound row of a format in which a few places are something else."""
    return changed(draw, draw(st.sampled_from(SOUND[loader])))


def changed(draw: st.DrawFn, sound: Any) -> Any:
    """A copy with up to three values replaced, doubled, moved or left out, at any depth."""
    row = copy.deepcopy(sound)
    for _ in range(draw(st.integers(0, 3))):
        places = list(_places(row))
        if not places:
            break
        owner, key = draw(st.sampled_from(places))
        how = draw(st.integers(0, 5))
        if how == 0:
            del owner[key]
        elif how == 1:
            others = [owner for owner, _ in _places(sound)]
            owner[key] = copy.deepcopy(draw(st.sampled_from(others)))
        elif how == 2 and isinstance(owner, dict):
            owner[draw(KEYS)] = owner[key]
        elif how == 2:
            owner.insert(key, owner[key])
        else:
            owner[key] = draw(_SAID if how < 5 else ANYTHING)
    return row


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in list(inner):
        yield value, key
        if isinstance(one, dict | list):
            yield from _places(one)


@st.composite
def requests(draw: st.DrawFn) -> tuple[Any, Any]:
    """(query, history) of a call."""
    sound = draw(st.sampled_from(_REQUESTS))
    if draw(st.integers(0, 9)) == 0:
        return draw(ANYTHING), draw(st.one_of(st.none(), ANYTHING))
    found = changed(draw, {"query": sound[0], "history": sound[1]})
    return found.get("query"), found.get("history")


_REQUESTS: list[tuple[Any, Any]] = [
    ("How far?", None),
    ("How far?", _PLAIN[:2]),
    (_PLAIN[0], []),
    (["How far?", _PLAIN[2]], [[], _PLAIN[:2]]),
    ([_PLAIN[:3], "How far?"], None),
    ([_turns("user")], None),
]
