"""Which result answers which call: checked by the same sentences in rows and in requests."""

import copy
import re
from typing import Any

import pytest
from chat_templates import chat

from main.dialogue.accounts import Dialogue
from main.dialogue.messages import dialogue_problems
from main.dialogue.normal import normal
from main.errors import ConfigError, DataError
from main.predictor.request import build_dialogues


def call(name: str = "f", arguments: Any = None, **others: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"type": "function", "function": function, **others}


def result(text: str, **others: Any) -> dict[str, Any]:
    return {"role": "tool", "content": text, **others}


def dialogue(calls: Any, *results: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        *results,
        {"role": "assistant", "content": "a"},
    ]


TWO = [call("f", id="1"), call("g", id="2")]
WRONG = {
    "calls as text": (dialogue("f(x)", result("r")), "must be a list of calls; found str"),
    "a call as text": (dialogue(["f(x)"], result("r")), r"tool_calls\[0\] must be an object"),
    "no name": (dialogue([{"id": "1"}], result("r")), "has no 'name' of the function"),
    "another type": (dialogue([call() | {"type": "mcp"}], result("r")), "the type 'mcp'"),
    "an id that is no text": (dialogue([call(id=1)], result("r")), "'id' must be a string"),
    "a list of arguments": (dialogue([call("f", [1])], result("r")), "must be an object, or"),
    "no JSON": (dialogue([call("f", "{bad")], result("r")), "must be an object, or the JSON text"),
    "JSON of no object": (dialogue([call("f", "[1]")], result("r")), "must be an object, or"),
    "one id for two": (dialogue([call(id="1"), call(id="1")]), "two calls .* have the id '1'"),
    "an unknown id": (
        dialogue(TWO, result("r", tool_call_id="3")),
        "'tool_call_id' '3' is none of the calls before it: '1', '2'",
    ),
    "an id of an earlier turn": (
        dialogue(TWO, result("r")) + dialogue([call(id="4")], result("r", tool_call_id="1")),
        "'tool_call_id' '1' is none of the calls before it: '4'",
    ),
    "an id, and nothing was called": (
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "f(x)"},
            result("r", tool_call_id="1"),
            {"role": "assistant", "content": "a"},
        ],
        "'tool_call_id' '1' is none of the calls",
    ),
    "a second answer": (
        dialogue(TWO, result("r", tool_call_id="1"), result("s", tool_call_id="1")),
        "a second result of the call '1'",
    ),
    "more results than calls": (
        dialogue([call()], result("r"), result("s")),
        "result number 2 of 1 call",
    ),
    "another name by the id": (
        dialogue(TWO, result("r", tool_call_id="1", name="g")),
        "a result of 'g', and what was called is 'f'",
    ),
    "another name by the turn": (
        dialogue([call("f")], result("r", name="g")),
        "a result of 'g', and what was called is 'f'",
    ),
    "a call of the user": (
        [{"role": "user", "content": "q", "tool_calls": [call()]}, dialogue([])[-1]],
        "only the assistant calls",
    ),
}
SOUND = {
    "by ids": dialogue(TWO, result("r", tool_call_id="2"), result("s", tool_call_id="1", name="f")),
    "by order": dialogue([call(), call("g")], result("r"), result("s", name="g")),
    "ids in results alone": dialogue([call()], result("r", tool_call_id="1")),
    "a call without its result": dialogue(TWO, result("r", tool_call_id="2")),
    "calls in the text": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "f(x)"},
        {"role": "observation", "content": "r"},
        {"role": "assistant", "content": "a"},
    ],
    "flat": dialogue([{"name": "f", "arguments": '{"x": 1}'}], result("r")),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_call_or_a_link_that_means_nothing_is_named_in_rows_and_requests(kind):
    messages, expected = WRONG[kind]
    assert re.search(expected, " ".join(dialogue_problems(messages, "messages", "assistant")))
    with pytest.raises(ConfigError, match=expected):
        build_dialogues([[*messages, {"role": "user", "content": "and?"}]])


@pytest.mark.parametrize("kind", SOUND)
def test_sound_links_are_accepted(kind):
    assert not dialogue_problems(SOUND[kind], "messages", "assistant")
    assert build_dialogues([[*SOUND[kind], {"role": "user", "content": "and?"}]])


def test_results_come_in_the_order_of_their_calls_where_ids_say_it():
    messages = SOUND["by ids"]
    given = copy.deepcopy(messages)
    assert [m["content"] for m in normal(messages) if m["role"] == "tool"] == ["s", "r"]
    assert messages == given
    # qwen3 writes no ids: the order alone says whose a result is
    template = chat("smollm2", "qwen3")
    text = template.render(messages)
    assert text.index("<tool_response>\ns") < text.index("<tool_response>\nr")
    (rows,) = template.try_encode_rows([Dialogue(messages)])
    assert not isinstance(rows, DataError)
    ((_, encoded),) = rows
    assert str(template.tokenizer.decode(encoded.input_ids)).startswith(text.rstrip("\n"))


def test_keys_that_say_nothing_are_left_and_others_named():
    empty: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": "q", "cache_control": None}]},
        {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None},
    ]
    assert not dialogue_problems(empty, "messages", "assistant")
    told = copy.deepcopy(empty)
    told[0]["content"][0]["cache_control"] = {"type": "ephemeral"}
    told[1]["refusal"] = "no"
    part, key = dialogue_problems(told, "messages", "assistant")
    assert "content[0] has the unknown key 'cache_control'" in part
    assert "has the unknown key 'refusal'" in key
    for message in (told[0], told[1]):
        with pytest.raises(ConfigError, match="unknown key"):
            build_dialogues([[message, {"role": "user", "content": "and?"}]])


def test_thoughts_under_the_names_of_other_apis_and_developers_are_read():
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning": "because"},
    ]
    assert not dialogue_problems(messages, "messages", "assistant")
    assert "<think>\nbecause\n</think>" in chat("smollm2", "qwen3").render(messages)
    late = [*messages[1:], messages[0], *messages[1:]]
    (problem,) = dialogue_problems(late, "messages", "assistant")
    assert "a developer turn may only come first" in problem
