"""Every string of a dialogue is written by the template, or named; every trained turn stands
behind the prompt of inference."""

from typing import Any

import pytest
from chat_templates import chat, load_tokenizer, trained_texts, turns

from main.dialogue.accounts import Dialogue
from main.dialogue.plain import PlainText
from main.dialogue.prompts import encode
from main.errors import DataError, GenerationError
from main.loaders import chat as chat_rows
from main.loaders.report import Report
from main.predictor.request import build_prompts

IM = "<|im_end|>"


def weather(content: str | None, arguments: Any, role: str = "tool") -> list[dict[str, Any]]:
    function = {"name": "get_weather", "arguments": arguments}
    call = {"id": "call00001", "type": "function", "function": function}
    return [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": content, "tool_calls": [call]},
        {"role": role, "content": "sunny", "tool_call_id": "call00001"},
        {"role": "assistant", "content": "It is sunny."},
    ]


def rows(template: Any, messages: list[dict[str, Any]], train: Any = "all") -> list[Any]:
    template.train_turns = train
    (found,) = template.try_encode_rows([Dialogue(messages)])
    template.train_turns = "all"
    if isinstance(found, DataError):
        raise found
    return [encoded for _, encoded in found]


def refusal(template: Any, messages: list[dict[str, Any]]) -> str:
    with pytest.raises(DataError) as caught:
        rows(template, messages)
    return str(caught.value)


def test_what_a_template_leaves_out_is_named_with_its_turn() -> None:
    call = weather("Let me look.", {"city": "Paris"})
    assert "turn 2: this template writes no tool call: 'get_weather'" in refusal(
        chat("smollm2"), call
    )
    assert "turn 2: this template writes no content beside a tool call: 'Let me look.'" in refusal(
        chat("smollm2", "llama3_1"), call
    )
    two = weather(None, {"city": "Paris"})
    two[1]["tool_calls"] = two[1]["tool_calls"] * 2
    assert "(2 calls in one turn)" in refusal(chat("smollm2", "gptoss"), two)
    named = turns("q", "a")
    named[0]["name"] = "Ann"
    assert "turn 1: this template writes no 'name' of a turn of the user" in refusal(
        chat("smollm2"), named
    )


def test_a_string_that_only_the_templates_own_text_contains_is_not_written() -> None:
    # The name of the tool stands in the text of the turn: a search would find it there.
    messages = weather("I multiply with mul.", {"a": 2})
    messages[1]["tool_calls"][0]["function"]["name"] = "mul"
    assert "this template writes no tool call: 'mul'" in refusal(chat("smollm2"), messages)


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe"])
def test_a_call_is_the_same_however_the_row_spells_it(name: str) -> None:
    template = chat("smollm2", name)
    expected = rows(template, weather(None, {"city": "北京", "days": 3}))
    absent = weather(None, '{"city": "北京", "days": 3}', "observation")
    del absent[1]["content"]
    absent[1] |= {"refusal": None, "function_call": None}
    assert rows(template, absent) == expected
    (written, *_) = trained_texts(expected[0], template.tokenizer)
    assert "北京" in written and "None" not in written and '\\"' not in written


def test_thoughts_have_one_meaning_in_two_spellings() -> None:
    inline = turns("1+1?", "<think>one and one</think>It is 2.")
    keyed = turns("1+1?", "It is 2.")
    keyed[1]["reasoning_content"] = "one and one"
    for name in ("qwen3", "glm4moe", "deepseekv3", "gptoss"):
        template = chat("smollm2", name)
        assert rows(template, inline) == rows(template, keyed), name


def test_a_turn_whose_thoughts_are_removed_later_has_a_row_of_its_own() -> None:
    thoughts = turns("1+1?", "<think>a</think>2", "2+2?", "<think>b</think>4")
    template = chat("smollm2", "qwen3")
    last, first = rows(template, thoughts)
    assert trained_texts(last, template.tokenizer) == ["<think>\nb\n</think>\n\n4" + IM]
    assert trained_texts(first, template.tokenizer) == ["<think>\na\n</think>\n\n2" + IM]
    for encoded, place in ((last, 3), (first, 1)):
        begin = encoded.turns[0][0]
        assert encoded.input_ids[:begin] == template.encode_prompt(thoughts[:place])
    assert rows(template, thoughts, "last") == [last]


def test_a_prompt_that_opens_the_thoughts_is_continued_by_them() -> None:
    template = chat("smollm2", "deepseekv3")
    for content, expected in (
        ("<think>one and one</think>It is 2.", "one and one\n</think>\n\nIt is 2."),
        ("It is 2.", "\n</think>\n\nIt is 2."),
    ):
        (encoded,) = rows(template, turns("1+1?", content))
        begin, end = encoded.turns[0]
        assert encoded.input_ids[:begin] == template.encode_prompt(turns("1+1?"))
        text = template.tokenizer.decode(encoded.input_ids[begin:end])
        assert text == expected + "<｜end▁of▁sentence｜>"


def test_a_turn_that_ends_otherwise_than_the_last_one_is_trained_with_its_end() -> None:
    template = chat("smollm2", "gptoss")
    (encoded,) = rows(template, weather(None, {"city": "Paris"}))
    call, answer = trained_texts(encoded, template.tokenizer)
    assert "<|call|>" in call and answer.endswith("It is sunny.<|return|>")


def test_a_context_that_ends_in_blanks_has_the_ids_of_inference() -> None:
    plain = PlainText(load_tokenizer("smollm2"))
    for context in ("Answer:\n\n", "Answer:  ", "\n\n\n"):
        encoded = plain.encode_batch([(context, "foo")])[0]
        assert encoded.input_ids[: encoded.turns[0][0]] == plain.encode_prompt(context)


@pytest.mark.parametrize("role", ["tool", "observation"])
def test_the_predictor_reads_a_tools_result_as_training_does(role: str) -> None:
    template = chat("smollm2", "qwen3")
    asked = weather(None, {"city": "Paris"}, role)[:3]
    prompts = build_prompts(template.tokenizer, [asked])
    assert "<tool_response>\nsunny\n</tool_response>" in prompts.texts[0]
    assert encode(template.tokenizer, prompts) == [template.encode_prompt(asked)]


def test_a_predictor_refuses_what_its_template_leaves_out() -> None:
    asked = weather(None, {"city": "Paris"})[:3]
    with pytest.raises(GenerationError, match="request 0, turn 2: this template writes no tool"):
        build_prompts(load_tokenizer("smollm2"), [asked])


def test_rows_of_a_chat_file_are_one_record_for_each_rendering() -> None:
    thoughts = turns("1+1?", "<think>a</think>2", "2+2?", "<think>b</think>4")
    report = Report()
    template = chat("smollm2", "qwen3")
    row = {"conversations": thoughts}
    records = list(chat_rows.encode([(5, row)], template, None, report))
    assert [record["row"] for record in records] == [5, 5] and not report.bad
