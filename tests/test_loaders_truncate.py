"""Rows longer than `max_length`."""

from typing import Any

import pytest
from chat_templates import chat, load_tokenizer, trained_texts, turns

from main.dialogue.accounts import Dialogue
from main.dialogue.plain import PlainText
from main.loaders import preference, pure
from main.loaders.grpo import encode as encode_grpo
from main.loaders.report import Report
from main.loaders.truncate import encode_answers, fit, fit_prompt

END = "<|im_end|>"
LONG = turns("first", "one " * 30, "second", "two " * 30, "third", "three", system="Be brief.")
TEMPLATE = chat("smollm2")


def fitted(messages: list[dict[str, Any]], max_length: int | None) -> tuple[Any, str]:
    return fit(TEMPLATE.encode(messages), Dialogue(messages), TEMPLATE, max_length)


def test_a_row_that_fits_is_left_alone() -> None:
    whole = TEMPLATE.encode(LONG)
    assert fitted(LONG, None) == (whole, "")
    assert fitted(LONG, len(whole.input_ids)) == (whole, "")


def test_the_oldest_exchange_goes_first_and_the_system_turn_stays() -> None:
    shorter = [LONG[0], *LONG[3:]]
    expected = TEMPLATE.encode(shorter)
    limit = len(TEMPLATE.encode(LONG).input_ids) - 1
    assert fitted(LONG, limit) == (expected, "shortened")
    # No more is dropped than has to be: exactly what remains still fits, one token less does not.
    assert fitted(LONG, len(expected.input_ids)) == (expected, "shortened")
    last = TEMPLATE.encode([LONG[0], *LONG[5:]])
    assert fitted(LONG, len(expected.input_ids) - 1) == (last, "shortened")


def test_an_exchange_goes_with_its_tool_turns() -> None:
    template = chat("qwen", "qwen2_5")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    dialogue: list[dict[str, Any]] = [
        {"role": "user", "content": "long " * 30},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "result"},
        {"role": "assistant", "content": "done"},
        *turns("next", "answer"),
    ]
    limit = len(template.encode(dialogue).input_ids) - 1
    result, fate = fit(template.encode(dialogue), Dialogue(dialogue), template, limit)
    assert (result, fate) == (template.encode(turns("next", "answer")), "shortened")


def test_an_answer_too_long_by_itself_is_cut_at_its_end() -> None:
    last = [LONG[0], *turns("ask", "word " * 50)]
    whole = TEMPLATE.encode(last)
    limit = whole.turns[0][0] + 3
    for messages, expected in ((last, "cut"), ([*LONG[:3], *last[1:]], "both")):
        result, fate = fitted(messages, limit)
        assert fate == expected
        assert result.input_ids == whole.input_ids[:limit]
        assert sum(result.loss_mask) == 3
        assert trained_texts(result, TEMPLATE.tokenizer) == ["word word word"]


def test_a_prompt_that_leaves_no_room_skips_the_row() -> None:
    messages = turns("word " * 50, "answer")
    begin = TEMPLATE.encode(messages).turns[0][0]
    assert fitted(messages, begin) == (None, "skipped")
    assert fitted(messages, begin + 1)[1] == "cut"


def test_a_preference_prompt_loses_its_oldest_exchange_before_an_answer_is_cut() -> None:
    asked = [*LONG[:5], {"role": "user", "content": "third"}]
    answers = ["good", "bad " * 20]
    whole, fate = encode_answers(Dialogue(asked), answers, TEMPLATE, None)
    assert fate == "" and whole is not None
    length = len(whole.prompt_ids) + len(whole.completion_ids[1])
    shorter, fate = encode_answers(Dialogue(asked), answers, TEMPLATE, length - 1)
    assert fate == "shortened" and shorter is not None
    assert shorter.completion_ids == whole.completion_ids
    assert shorter.prompt_ids == TEMPLATE.encode_prompt([asked[0], *asked[3:]])


def test_preference_answers_are_cut_to_the_room_that_the_prompt_leaves() -> None:
    row = {"conversations": turns("q"), "gold_answers": "a", "bad_answers": "word " * 30}
    prompt = TEMPLATE.encode_prompt(turns("q"))
    report = Report()
    limit = len(prompt) + 5
    (record,) = preference.encode_pairs([(3, row)], TEMPLATE, limit, report)
    assert len(record["rejected_ids"]) == 5 and record["length"] == limit
    assert TEMPLATE.tokenizer.decode(record["chosen_ids"]) == "a" + END
    assert list(preference.encode_pairs([(4, row)], TEMPLATE, len(prompt), report)) == []
    assert report.fates == {"cut": (1, [3]), "skipped": (1, [4])}


def test_a_grpo_prompt_leaves_room_for_a_token() -> None:
    asked = LONG[:-1]
    short = TEMPLATE.encode_prompt([LONG[0], LONG[5]])
    assert fit_prompt(Dialogue(asked), TEMPLATE, len(short) + 1) == (short, "shortened")
    assert fit_prompt(Dialogue(asked), TEMPLATE, len(short)) == (None, "skipped")
    report = Report()
    assert list(encode_grpo([(2, {"prompt": "a b c"})], TEMPLATE, 3, report)) == []
    assert report.fates == {"skipped": (1, [2])}


@pytest.mark.parametrize(("room", "trained", "fate"), [(0, 0, "skipped"), (2, 2, "cut")])
def test_an_over_long_target_is_cut_and_a_context_without_room_skipped(
    room: int, trained: int, fate: str
) -> None:
    plain = PlainText(load_tokenizer("smollm2"))
    context = plain.encode_prompt("the context:")
    row = {"context": "the context:", "target": " one two three four"}
    report = Report()
    records = list(pure.encode([(1, row)], plain, len(context) + room, report))
    assert report.fates == {fate: (1, [1])}
    assert [sum(record["loss_mask"]) for record in records] == [trained] * bool(trained)
