"""Whatever is asked, a predictor gives answers or an error of ours, and changes nothing given."""

import contextlib
import copy
import re
import typing
from typing import Any

import pytest
import torch
import wild
from hypothesis import strategies as st

from main.errors import ConfigError, DataError, MainError
from main.predictor.hf import Predictor
from main.predictor.sampling import GenerationOptions

HINTS = typing.get_type_hints(GenerationOptions)
NAMES = sorted(set(HINTS) - {"max_new_tokens", "num_return_sequences"})


@pytest.fixture(scope="module")
def predictor(tiny_model_path):
    return Predictor(tiny_model_path)


@st.composite
def calls(draw: st.DrawFn) -> tuple[Any, Any, dict[str, Any]]:
    """(query, history, options)."""
    query, history = draw(wild.requests())
    names = draw(st.lists(st.sampled_from(NAMES), max_size=2, unique=True))
    options = {
        name: draw(wild.of_hint(HINTS[name]) if draw(st.integers(0, 3)) else wild.ANYTHING)
        for name in names
    }
    if draw(st.integers(0, 9)) == 0:
        options[draw(st.sampled_from(["system_prompt", "documents", "x"]))] = draw(wild.ANYTHING)
    return query, history, options


@wild.how_many(200, 10_000)
def test_of_any_request_come_answers_or_an_error_of_ours(predictor, examples):
    def check(call: tuple[Any, Any, dict[str, Any]], whole: bool) -> None:
        query, history, options = call
        try:
            if whole:
                answers = predictor(query, history, max_new_tokens=2, **options)
                assert all(isinstance(answer, str) for answer in answers)
            else:
                predictor.prompt_ids(query, history, **options)
        except MainError as error:
            assert str(error)

    wild.holds(check, examples, call=calls(), whole=st.integers(0, 7).map(lambda n: n == 0))


def without_places(request: Any) -> str:
    """What Python shows of it, but for where objects lie."""
    return re.sub(r"0x[0-9a-f]+", "", repr(request))


@wild.how_many(60, 2_000)
def test_nothing_that_was_asked_is_changed(predictor, examples):
    def check(request: tuple[Any, Any]) -> None:
        try:
            before = copy.deepcopy(request)
        except TypeError:  # a generator
            return
        with contextlib.suppress(MainError):
            predictor.prompt_ids(*request)
        assert without_places(request) == without_places(before)

    without_long = wild.requests().filter(lambda request: "10 ** 5000" not in _text(request))
    wild.holds(check, examples, request=without_long)


def _text(value: Any) -> str:
    try:
        return repr(value)
    except ValueError:
        return "10 ** 5000"


USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"role": 3, 5: 1}, r"got a mapping with \['5', 'role'\]"),
        ({"role": "user", "content": {"a": 1}, "tool_calls": [{}]}, "must be text or a list of pa"),
        ([10**5000], r"query\[0\] must be text.*got int <int that cannot be shown>"),
        ({**USER, "reasoning_content": {"a": 1}}, "'reasoning_content' must be a string; found d"),
        ({**USER, "name": 7}, "'name' must be a string; found int 7"),
        ([[{**USER, "content": [{"type": "x", "y": 10**2000}]}]], "has more than 1000 digits"),
        ([[{**USER, "content": [{"type": "x", "y": {3: 1}}]}]], "a key must be a text; found 3"),
    ],
)
def test_what_no_message_can_hold_is_refused_by_name(predictor, query, message):
    with pytest.raises(ConfigError, match=message):
        predictor.prompt_ids(query)


def test_a_list_that_holds_itself_is_refused(predictor):
    part: dict[str, Any] = {"type": "other"}
    part["inner"] = [part, part]
    with pytest.raises(ConfigError, match="nested too deeply"):
        predictor.prompt_ids({"role": "user", "content": [part]})


@pytest.mark.parametrize("tools", [torch.tensor([]), 0, False, {"name": "f"}])
def test_tools_that_are_no_list_are_refused(predictor, tools):
    with pytest.raises((ConfigError, DataError), match="'tools' must be a list of tools; found"):
        predictor.prompt_ids("a", tools=tools)
