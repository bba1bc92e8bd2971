"""Near-sound rows in every format, files and registries: sound records or an error of ours."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import wild
from chat_templates import chat, load_tokenizer
from hypothesis import strategies as st

from main.dialogue.accounts import Dialogue
from main.dialogue.prompts import encode, render
from main.errors import DataError, MainError
from main.evaluation.items import items_of
from main.loaders import LOADERS, get_template, read_rows, resolve
from main.loaders.cache import _schema, valid_rows
from main.loaders.report import Report
from main.loaders.sources import of_file

# Vocabulary and template: thoughts cut from history, a BOS, a system turn of its own, plain ChatML.
FAMILIES = [
    ("qwen", "qwen3"),
    ("llama3", "llama3"),
    ("smollm2", None),
    ("qwen", "qwen2_5"),
    ("glm", "glm4moe"),
]
SCHEMAS = {name: _schema(form) for name, form in LOADERS.items()}


def written(path: Path, row: Any) -> Path | None:
    """The row as a file; None where JSON cannot say it."""
    try:
        path.write_text(json.dumps(row, default=str), encoding="utf-8")
    except (ValueError, TypeError):  # numbers and keys that JSON has not
        return None
    return path


@wild.how_many(80, 15_000)
def test_of_any_row_of_a_file_come_records_or_a_refusal(tmp_path, examples):
    def check(data: Any, loader: str, family: tuple[str, str], limit: int | None) -> None:
        path = written(tmp_path / "a.jsonl", data.draw(wild.rows(loader)))
        if path is None:
            return
        form, report = LOADERS[loader], Report()
        template = get_template(load_tokenizer(*family), loader)
        rows = list(valid_rows(of_file(path), form, report))
        records = list(form.encode(rows, template, limit, report))
        table = pyarrow.RecordBatch.from_pylist(records, schema=SCHEMAS[loader])
        assert bool(len(table)) <= (not report.bad)
        for record in records:
            assert limit is None or record["length"] <= limit
            for name in {"prompt", "columns"} & set(record):
                json.loads(record[name])
            if "loss_mask" in record:
                assert any(record["loss_mask"])

    wild.holds(
        check,
        examples,
        data=st.data(),
        loader=st.sampled_from(sorted(LOADERS)),
        family=st.sampled_from(FAMILIES),
        limit=st.sampled_from([None, None, 5, 20, 60]),
    )


@wild.how_many(150, 15_000)
def test_of_any_row_in_memory_come_items_or_an_error_of_ours(examples):
    def check(data: Any, loader: str) -> None:
        try:
            items_of([data.draw(wild.rows(loader))])
        except MainError as error:
            assert str(error)

    wild.holds(check, examples, data=st.data(), loader=st.sampled_from(sorted(LOADERS)))


# -- what is trained is what inference gives

SAID = st.text(st.sampled_from("ab ._<>|{}\n\t'\"长é🙂\u0301\u200d"), min_size=1, max_size=12)
WORDS = st.one_of(SAID, st.sampled_from(["<think>", "</think>", "[INST]", "<|im_end", "{{a}}"]))
TEXTS = st.lists(WORDS, min_size=1, max_size=3).map("".join).filter(str.strip)


@st.composite
def dialogues(draw: st.DrawFn) -> list[dict[str, Any]]:
    messages = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(TEXTS)})
        answer = {"role": "assistant", "content": draw(TEXTS)}
        if draw(st.integers(0, 3)) == 0:
            answer["reasoning_content"] = draw(TEXTS)
        messages.append(answer)
    return messages


def folded(text: Any) -> str:
    """As the tokenizers of some families write it."""
    return unicodedata.normalize("NFC", text)


def assert_trained_as_asked(family: tuple[str, str], messages: list[dict[str, Any]]) -> bool:
    """Whether the dialogue is taken; each trained span then stands behind its inference prompt."""
    template = chat(*family)
    (found,) = template.try_encode_rows([Dialogue(messages)])
    if isinstance(found, DataError):
        return False
    asks = {
        place: tuple(encode(template.tokenizer, render(template.tokenizer, [Dialogue(before)]))[0])
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
        for before in [messages[:place]]
    }
    places = []
    for _, encoded in found:
        trained = [place for a, b in encoded.turns for place in range(a, b)]
        assert [i for i, kept in enumerate(encoded.loss_mask) if kept] == trained
        for begin, end in encoded.turns:
            prompt = tuple(encoded.input_ids[:begin])
            place = next(p for p, ask in asks.items() if ask == prompt and p not in places)
            text = folded(template.tokenizer.decode(encoded.input_ids[begin:end]))
            said = folded(messages[place]["content"]).strip()
            # A thought in the content may be spelt in the template's own way.
            assert said in text or "think>" in said, (said, text)
            places.append(place)
    assert sorted(places) == sorted(asks)
    return True


@wild.how_many(60, 8_000)
def test_a_trained_turn_stands_behind_the_prompt_of_inference(examples):
    taken = []

    def check(family: tuple[str, str], messages: list[dict[str, Any]]) -> None:
        taken.append(assert_trained_as_asked(family, messages))

    wild.holds(check, examples, family=st.sampled_from(FAMILIES), messages=dialogues())
    assert sum(taken) > len(taken) / 3


@wild.how_many(40, 5_000)
def test_answers_to_a_preference_stand_behind_the_prompt_of_inference(examples):
    def check(family: tuple[str, str], messages: list[dict[str, Any]], golds: list[str]) -> None:
        asked, template, report = messages[:-1], chat(*family), Report()
        row = {"conversations": asked, "gold_answers": golds, "bad_answers": "something else"}
        if LOADERS["LLM_DPO"].validate(row):
            return
        records = list(LOADERS["LLM_DPO"].encode([(1, row)], template, None, report))
        if report.bad:
            return
        prompt = encode(template.tokenizer, render(template.tokenizer, [Dialogue(asked)]))[0]
        assert [r["prompt_ids"] for r in records] == [prompt] * len(golds)
        for record, gold in zip(records, golds, strict=True):
            text = folded(template.tokenizer.decode(record["chosen_ids"]))
            assert folded(gold).strip() in text or "think>" in gold

    wild.holds(
        check,
        examples,
        family=st.sampled_from(FAMILIES),
        messages=dialogues(),
        golds=st.lists(TEXTS, min_size=1, max_size=2),
    )


# -- files and registries

PRESENT = {"d": {"train": "a.jsonl", "dev": "b.jsonl"}, "e": {"train": "a.jsonl"}}


@wild.how_many(150, 10_000)
def test_of_any_registry_come_files_or_an_error_of_ours(tmp_path, examples):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text('{"x": 1}', encoding="utf-8")

    def check(data: Any, asked: Any) -> None:
        registry = written(tmp_path / "present.json", wild.changed(data.draw, PRESENT))
        if registry is None:
            return
        try:
            found = resolve(asked, registry)
        except MainError as error:
            assert str(error)
        else:
            paths = [part.path for source in found.values() for part in source.parts]
            assert all(path and path.is_file() for path in paths)

    entries = st.dictionaries(st.sampled_from(["train", "dev", "x"]), wild.ANYTHING, max_size=2)
    names = st.one_of(st.sampled_from(["d", "e"]), wild.WORDS, wild.TEXT, entries)
    wild.holds(check, examples, data=st.data(), asked=names)


@wild.how_many(150, 20_000)
def test_of_any_bytes_come_rows_or_an_error_of_ours(tmp_path, examples):
    pieces = st.one_of(
        st.binary(max_size=6),
        st.sampled_from([b'{"a": 1}', b"[", b"]", b",", b"\n", b"\xef\xbb\xbf", b'"\\ud83d"']),
        st.sampled_from([b"1e999", b"NaN", b"9" * 2000, b"[" * 200, b'{"a": {"a": 1, "a": 2}}']),
    )
    path = tmp_path / "a.json"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        try:
            for _, row in read_rows(path):
                assert isinstance(row, dict)
                json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except MainError as error:
            str(error).encode("utf-8")

    wild.holds(check, examples, data=st.lists(pieces, max_size=8).map(b"".join))


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "name", "tool_call_id"])
def test_a_key_of_a_message_that_must_be_text_is(key):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: {"x": 1}}]
    (problem,) = LOADERS["LLM_Chat"].validate({"conversations": turns})
    assert f"conversations[1] '{key}' must be a string; found dict {{'x': 1}}" in problem
