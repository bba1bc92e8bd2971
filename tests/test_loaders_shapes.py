"""Rows of other libraries: what `auto` takes them for, and what becomes of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import chat, turns

from main.dialogue.plain import PlainText
from main.errors import DataError
from main.evaluation.items import items_of
from main.loaders import get_loader, load_dataset_split, resolve
from main.loaders.recognise import recognise
from main.loaders.shapes import shape_of

SFT = ("LLM_Chat", "ChatGLM_Chat", "LLM_Pure", "ChatGLM_LoRA")
DPO = ("LLM_DPO", "LLM_RLHF", "LLM_KTO")
PPO = ("LLM_RLHF", "LLM_DPO")
GRPO = ("LLM_GRPO",)
TEMPLATE = chat("smollm2")
CALL = {"name": "add", "arguments": {"a": 1}}
USER, GOOD, BAD = (
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
    {"role": "assistant", "content": "b"},
)
CHAT = {"conversations": [USER, GOOD]}
PAIR = {"conversations": [USER], "gold_answers": "a", "bad_answers": "b"}
HUMAN, GPT, OTHER = (
    {"from": f, "value": v} for f, v in (("human", "q"), ("gpt", "a"), ("gpt", "b"))
)

KNOWN: list[tuple[dict[str, Any], tuple[str, ...], str, dict[str, Any]]] = [
    (CHAT, SFT, "LLM_Chat", CHAT),
    ({"messages": [USER, GOOD], "tools": "[]"}, SFT, "LLM_Chat", {**CHAT, "tools": []}),
    ({"conversations": [HUMAN, GPT], "system": "s"}, SFT, "LLM_Chat", {**CHAT, "system": "s"}),
    ({"instruction": "q", "output": "a"}, SFT, "LLM_Chat", CHAT),
    (
        {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]], "weight": 0.5},
        SFT,
        "LLM_Chat",
        {"conversations": turns("x", "y", "q\ni", "a"), "weight": 0.5},
    ),
    ({"prompt": "q", "completion": "a"}, SFT, "LLM_Chat", CHAT),
    ({"prompt": [USER], "completion": [GOOD]}, SFT, "LLM_Chat", CHAT),
    ({"context": "c", "target": "t"}, SFT, "LLM_Pure", {"context": "c", "target": "t"}),
    (PAIR, DPO, "LLM_DPO", PAIR),
    (PAIR, PPO, "LLM_RLHF", PAIR),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, DPO, "LLM_DPO", PAIR),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, DPO, "LLM_DPO", PAIR),
    ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, DPO, "LLM_DPO", PAIR),
    ({"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, PPO, "LLM_RLHF", PAIR),
    ({"instruction": "q", "chosen": "a", "rejected": "b"}, DPO, "LLM_DPO", PAIR),
    ({"conversations": [HUMAN], "chosen": GPT, "rejected": OTHER}, DPO, "LLM_DPO", PAIR),
    (
        {"prompt": "q", "completion": "a", "label": True},
        DPO,
        "LLM_KTO",
        {"prompt": "q", "completion": "a", "label": True},
    ),
    ({"prompt": "q", "answer": "a"}, GRPO, "LLM_GRPO", {"prompt": "q", "answer": "a"}),
    ({"messages": [USER, GOOD]}, GRPO, "LLM_GRPO", {"prompt": [USER], "answer": "a"}),
    ({"instruction": "q", "output": "a"}, GRPO, "LLM_GRPO", {"prompt": [USER], "answer": "a"}),
]


@pytest.mark.parametrize(("row", "loaders", "loader", "own"), KNOWN)
def test_a_row_becomes_one_of_ours(
    row: dict, loaders: tuple[str, ...], loader: str, own: dict, caplog: pytest.LogCaptureFixture
) -> None:
    before = json.dumps(row)
    found, sources = recognise(resolve([row]), loaders, "a trainer")
    read = list(sources["train"].parts[0].rows(lambda number, text: pytest.fail(text)))
    assert (found, read) == (loader, [(1, own)])
    assert get_loader(loader).validate(own) == []
    assert f"read with loader_name='{loader}'" in caplog.text
    assert json.dumps(row) == before


def test_calls_of_sharegpt_become_tool_calls() -> None:
    row = {
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "1"},
            GPT,
        ]
    }
    shape = shape_of(row)
    assert shape is not None
    call, result = shape.read(row, "LLM_Chat")["conversations"][1:3]
    assert call["tool_calls"] == [{"type": "function", "function": CALL}]
    assert result == {"role": "tool", "content": "1"}


def encode(rows: list[dict[str, Any]], folder: Path, loaders: tuple[str, ...] = SFT) -> Any:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    loader, sources = recognise(resolve(path), loaders, "lora.Trainer")
    template = PlainText(TEMPLATE.tokenizer) if loader == "LLM_Pure" else TEMPLATE
    return load_dataset_split(sources["train"], loader, template, cache_dir=folder / "cache")


def test_rows_of_another_kind_are_refused_by_line(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": "q", "output": "a"},
        {"conversations": [HUMAN, GPT]},
        {"instruction": "q"},
    ]
    with pytest.raises(DataError) as refused:
        encode(rows, tmp_path)
    assert "2 of 3 rows cannot be used" in str(refused.value)
    assert "rows.jsonl line 2: a row of ShareGPT (from, value); the first row is one of Alpaca" in (
        str(refused.value)
    )
    assert "line 3: a row with the fields ['instruction']" in str(refused.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [USER, {**GOOD, "content": ""}]}, r"line 1: messages\[1\]"),
        ({"conversations": [HUMAN, {"from": "robot", "value": "x"}]}, r"\[1\] is from 'robot'; kn"),
        ({"conversations": [HUMAN, {"from": "gpt"}]}, r"\[1\] must be an object with 'from' and"),
        ({"instruction": "q", "output": " "}, "line 1: 'output' is empty"),
        ({"instruction": "q", "input": 3, "output": "a"}, "'input' must be a string; found int"),
        ({"prompt": "q", "completion": [GOOD]}, "must both be strings or both be messages"),
        ({"messages": [USER, GOOD], "tools": "[{"}, "'tools' is not JSON"),
        ({"text": "a"}, r"knows no rows with the fields \['text'\]. It knows KTO"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "are not what lora.Trainer trains on"),
    ],
)
def test_what_cannot_be_read_is_told_with_the_names_of_the_row(
    row: dict, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        encode([row], tmp_path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "the answer 'a' is both gold and bad"),
        ({"chosen": [USER, GOOD], "rejected": [BAD, BAD]}, "must be the same dialogue but for"),
        ({"chosen": "a", "rejected": "b"}, "'prompt' is missing"),
        ({"prompt": "x", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "'prompt' does not st"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
    ],
)
def test_what_is_wrong_with_a_pair_is_told(row: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        encode([row], tmp_path, DPO)


def test_every_file_may_have_a_shape_of_its_own_as_long_as_one_loader_reads_them() -> None:
    alpaca, messages = [{"instruction": "q", "output": "a"}], [{"messages": [USER, GOOD]}]
    loader, sources = recognise(resolve([{"data": alpaca}, {"data": messages}]), SFT, "a trainer")
    own = [row for part in sources["train"].parts for _, row in part.rows(lambda n, t: None)]
    assert (loader, own) == ("LLM_Chat", [CHAT, CHAT])
    pure = [{"context": "c", "target": "t"}]
    with pytest.raises(DataError, match=r"no loader of a trainer reads all .*LLM_Pure"):
        recognise(resolve([{"data": alpaca}, {"data": pure}]), SFT, "a trainer")


def test_our_own_loaders_say_that_auto_knows_such_rows(tmp_path: Path) -> None:
    rows = [{"messages": [USER, GOOD]}] * 2
    with pytest.raises(DataError, match="loader_name='auto' reads such rows: OpenAI messages"):
        load_dataset_split(rows, "LLM_Chat", TEMPLATE, cache_dir=tmp_path)


def test_batch_inference_asks_rows_of_every_shape() -> None:
    rows = [row for row, *_ in KNOWN]
    items = items_of([*rows, {"instruction": "q", "input": "i"}])
    assert [item.query for item in items[:4]] == ["q"] * 4
    assert items[-1].query == "q\ni" and items[-1].answer is None
    assert [item.answer for item in items].count("a") >= 14
