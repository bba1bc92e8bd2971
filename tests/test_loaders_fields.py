"""What stands beside the messages of a row is honoured, refused by name, or named once."""

import json
import logging
from typing import Any

import pytest
import torch
from chat_templates import chat, load_tokenizer, trained_texts, turns

from main.errors import ConfigError, DataError
from main.loaders import load_dataset_split
from main.loaders.fields import dialogue_of
from main.loaders.registry import LOADERS, get_loader, get_template
from main.loaders.report import Report

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a place.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
SCHEMA = {"type": "function", "function": WEATHER}
CALLING: list[dict[str, Any]] = [
    {"role": "user", "content": "weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "get_weather", "arguments": '{"city": "Rom"}'}}],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "Sun."},
]
ROWS: dict[str, dict[str, Any]] = {
    "LLM_Chat": {"conversations": turns("q", "a")},
    "LLM_DPO": {"conversations": turns("q"), "gold_answers": "a", "bad_answers": "b"},
    "LLM_RLHF": {"conversations": turns("q"), "gold_answers": "a", "bad_answers": "b"},
    "LLM_KTO": {"conversations": turns("q"), "answer": "a", "label": True},
    "LLM_GRPO": {"prompt": turns("q"), "answer": "a"},
}


def encoded(loader: str, row: dict[str, Any], template: Any) -> dict[str, Any]:
    form, report = get_loader(loader), Report()
    assert form.validate(row) == []
    found = list(form.encode([(1, row)], template, None, report))
    if report.problems:
        raise DataError(report.problems[0][1])
    return found[0]


def ids_of(record: dict[str, Any]) -> list[int]:
    return record["input_ids"] if "input_ids" in record else record["prompt_ids"]


@pytest.mark.parametrize("loader", ROWS)
def test_a_system_text_is_the_first_turn_in_every_format(loader: str) -> None:
    template, row = chat("qwen", "qwen2_5"), ROWS[loader]
    field = "prompt" if loader == "LLM_GRPO" else "conversations"
    system = {"role": "system", "content": "Answer like a PIRATE."}
    expected = ids_of(encoded(loader, {**row, field: [system, *row[field]]}, template))
    assert ids_of(encoded(loader, {**row, "system": system["content"]}, template)) == expected
    assert ids_of(encoded(loader, {**row, "system": None}, template)) != expected
    twice = {**row, field: [system, *row[field]], "system": "x"}
    assert "'system' is given twice" in " ".join(get_loader(loader).validate(twice))


@pytest.mark.parametrize("tools", [[SCHEMA], [WEATHER], json.dumps([SCHEMA])])
@pytest.mark.parametrize("loader", ROWS)
def test_tools_are_written_by_the_template_in_every_format(loader: str, tools: Any) -> None:
    template, row = chat("qwen", "qwen2_5"), {**ROWS[loader], "tools": tools}
    messages = row["prompt"] if loader == "LLM_GRPO" else row["conversations"]
    text = template.render(messages, tools=[SCHEMA])
    found = str(template.tokenizer.decode(ids_of(encoded(loader, row, template))))
    assert text.partition("<|im_start|>user")[0] == found.partition("<|im_start|>user")[0]
    assert "get_weather" in found
    with pytest.raises(DataError, match="'tools': this chat template writes no tools"):
        encoded(loader, row, chat("smollm2"))


def test_a_python_function_is_a_tool() -> None:
    def get_weather(city: str) -> str:
        """Weather of a place.

        Args:
            city: its name.
        """
        return city

    row = {**ROWS["LLM_Chat"], "tools": [get_weather]}
    text = chat("qwen", "qwen2_5").tokenizer.decode(
        ids_of(encoded("LLM_Chat", row, chat("qwen", "qwen2_5")))
    )
    assert '"description": "Weather of a place."' in text
    assert '"description": "its name."' in text


def test_a_dialogue_with_calls_trains_the_calls_behind_its_tools() -> None:
    template = chat("qwen", "qwen2_5")
    row = {"conversations": CALLING, "tools": [SCHEMA]}
    (record,) = [encoded("LLM_Chat", row, template)]
    (whole,) = template.try_encode_rows([dialogue_of(row, CALLING)])
    assert not isinstance(whole, DataError)
    first, second = trained_texts(whole[0][1], template.tokenizer)
    assert '{"name": "get_weather", "arguments": {"city": "Rom"}}' in first
    assert second == "Sun.<|im_end|>"
    prompt = template.encode_prompt(CALLING[:3], [SCHEMA])
    assert record["input_ids"][: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ("[{]", "'tools' is a text that is not JSON"),
        ({"name": "x"}, "'tools' must be a list of tools; found dict."),
        (["x"], "tools[0] must be a JSON schema or a Python function; found str."),
        ([{"type": "web_search"}], "tools[0] has the type 'web_search'"),
        ([{"description": "x"}], "tools[0] has no 'name'; found ['description']."),
        ([SCHEMA, WEATHER], "'tools' has two tools called 'get_weather'"),
        ([len], "tools[0], the function 'len', gives no schema"),
    ],
)
def test_bad_tools_are_explained(tools: Any, expected: str) -> None:
    found = get_loader("LLM_Chat").validate({**ROWS["LLM_Chat"], "tools": tools})
    assert expected in " ".join(found)


@pytest.mark.parametrize("loader", ROWS)
def test_variables_of_a_row_reach_the_template_or_are_refused(loader: str) -> None:
    template, row = chat("qwen", "qwen3"), ROWS[loader]
    off = {**row, "chat_template_kwargs": {"enable_thinking": False}}
    record = encoded(loader, off, template)
    text = str(template.tokenizer.decode(ids_of(record)))
    if loader != "LLM_Chat":  # a whole dialogue has no open prompt
        assert text.endswith("<think>\n\n</think>\n\n")
        plain = str(template.tokenizer.decode(ids_of(encoded(loader, row, template))))
        assert plain.endswith("assistant\n")
    with pytest.raises(DataError, match="reads no variable 'thinkin'"):
        encoded(loader, {**row, "chat_template_kwargs": {"thinkin": True}}, template)


@pytest.mark.parametrize(
    ("loader", "field", "value"),
    [
        ("LLM_Chat", "audios", ["a.wav"]),
        ("LLM_Chat", "label", True),
        ("LLM_DPO", "images", ["a.png"]),
        ("LLM_DPO", "weight", 2.0),
        ("LLM_RLHF", "videos", ["a.mp4"]),
        ("LLM_GRPO", "images", ["a.png"]),
        ("LLM_KTO", "train", False),
        ("LLM_Pure", "system", "Be brief."),
        ("LLM_Pure", "tools", [SCHEMA]),
    ],
)
def test_a_field_with_a_meaning_that_a_format_does_not_read_is_refused(loader, field, value):
    row = ROWS.get(loader, {"context": "q", "target": "a"})
    assert get_loader(loader).validate(row) == []
    found = " ".join(get_loader(loader).validate({**row, field: value}))
    assert f"'{field}' is not read in rows of this format" in found


@pytest.mark.parametrize("loader", ["LLM_RLHF", "LLM_GRPO"])
def test_labels_and_weights_belong_to_reward_functions(loader: str) -> None:
    row = {**ROWS[loader], "label": "hard", "weight": "heavy"}
    columns = json.loads(encoded(loader, row, chat("smollm2"))["columns"])
    assert (columns["label"], columns["weight"]) == ("hard", "heavy")


def test_a_prompt_of_plain_text_takes_no_fields_of_dialogues() -> None:
    found = get_loader("LLM_GRPO").validate({"prompt": "2 + 2 =", "system": "Be brief."})
    assert "'system' needs a prompt of messages" in " ".join(found)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, []),
        ({"weight": 1}, []),
        ({"weight": 0.5}, [0.5, 0.5]),
        ({"train": True}, []),
        ({"turns": [{"weight": 2}, {}]}, [2, 1]),
        ({"weight": 0.5, "turns": [{"weight": 4}, {}]}, [2, 0.5]),
    ],
)
def test_a_turn_counts_its_weight_times_the_rows(fields: dict[str, Any], weights: list) -> None:
    messages = turns("q", "first answer", "r", "second answer")
    for message, more in zip(messages[1::2], fields.pop("turns", [{}, {}]), strict=True):
        message |= more
    template = chat("smollm2")
    record = encoded("LLM_Chat", {"conversations": messages, **fields}, template)
    by_turn = [w for w in dict.fromkeys(record["weights"]) if w]
    assert by_turn == list(dict.fromkeys(weights))
    for weight, trained in zip(record["weights"], record["loss_mask"], strict=False):
        assert bool(weight) == trained


@pytest.mark.parametrize("unsaid", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_a_turn_of_weight_0_is_context_and_a_row_of_them_is_told(unsaid: dict) -> None:
    template = chat("smollm2")
    messages = turns("q", "first", "r", "second")
    messages[1] |= unsaid
    record = encoded("LLM_Chat", {"conversations": messages}, template)
    kept = [i for i, k in zip(record["input_ids"], record["loss_mask"], strict=True) if k]
    assert template.tokenizer.decode(kept) == "second<|im_end|>"
    report = Report()
    row = {"conversations": turns("q", "a"), **unsaid}
    assert list(get_loader("LLM_Chat").encode([(7, row)], template, None, report)) == []
    assert report.fates == {"weightless": (1, [7])}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"weight": -1}, "'weight' must be a number >= 0; found -1."),
        ({"weight": float("nan")}, "'weight' must be a number >= 0; found nan."),
        ({"weight": True}, "'weight' must be a number >= 0; found True."),
        ({"train": "yes"}, "'train' must be true or false; found 'yes'."),
        ({"weight": 0, "train": True}, "'weight' 0 and 'train' True contradict each other."),
    ],
)
def test_bad_weights_are_explained_in_rows_and_turns(fields: dict, expected: str) -> None:
    in_row = {"conversations": turns("q", "a"), **fields}
    in_turn = {"conversations": [turns("q")[0], {"role": "assistant", "content": "a", **fields}]}
    for row in (in_row, in_turn):
        assert expected in " ".join(get_loader("LLM_Chat").validate(row))
    asked = {"conversations": [{"role": "user", "content": "q", "weight": 1}, *turns("q", "a")[1:]]}
    assert "only the assistant's turns are trained" in " ".join(
        get_loader("LLM_Chat").validate(asked)
    )


def test_a_weight_in_a_prompt_is_refused() -> None:
    prompt = [*turns("q", "a"), {"role": "user", "content": "r"}]
    prompt[1] = {**prompt[1], "weight": 2}
    found = get_loader("LLM_GRPO").validate({"prompt": prompt})
    assert "prompt[1] has 'weight', and a prompt is not trained" in " ".join(found)


def test_the_loss_is_the_weighted_mean(tiny_model_path, tmp_path, monkeypatch) -> None:
    """sum(w nll) / sum(w), with the log-probabilities of the plain model."""
    from main.trainer.lora import Trainer

    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {"conversations": turns("one", "first answer", "two", "second"), "weight": 3},
        {"conversations": turns("three", "a third answer")},
    ]
    rows[0]["conversations"][1]["weight"] = 0.5
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    trainer = Trainer(from_pretrained=tiny_model_path, data_path=path, lora_dropout=0.0)
    total = weight = 0.0
    for row in (trainer.train_data[i] for i in range(2)):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logprobs = trainer.causal_lm(input_ids=ids).logits.log_softmax(-1)[0, :-1]
        nll = -logprobs.gather(1, ids[0, 1:, None])[:, 0]
        mask = torch.tensor(row["loss_mask"][1:], dtype=torch.float32)
        w = torch.tensor(row["weights"][1:]) if row["weights"] else mask
        total += float((w * nll).sum())
        weight += float(w.sum())
    assert set(trainer.train_data[0]["weights"]) == {0.0, 1.5, 3.0}
    (result,) = trainer(num_epochs=1, lr=0, save_strategy="no", report_to="none")
    assert result.train["loss"] == pytest.approx(total / weight, rel=1e-5)


def test_placeholders_are_filled_in_order_and_counted() -> None:
    row: dict[str, Any] = {
        "conversations": [
            {"role": "user", "content": "<image>\nWho is <image>?"},
            {"role": "assistant", "content": "Ann. <image> is a word here."},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "And she?"}]},
            {"role": "assistant", "content": "Bea."},
        ],
        "images": ["1.png", {"path": "2.png"}, {"url": "file:///3.png"}],
    }
    form = get_loader("LLM_Chat")
    assert form.validate(row) == []
    messages = dialogue_of(row, row["conversations"]).messages
    assert messages[0]["content"] == [
        {"type": "image", "image": "1.png"},
        {"type": "text", "text": "Who is "},
        {"type": "image", "image": {"path": "2.png"}},
        {"type": "text", "text": "?"},
    ]
    assert messages[1] == row["conversations"][1]
    assert messages[2]["content"][0] == {"type": "image", "image": {"url": "file:///3.png"}}
    few = " ".join(form.validate({**row, "images": ["1.png"]}))
    assert "'images' has 1 entries and the messages have 3 places for them (<image>)" in few
    wrong = " ".join(form.validate({**row, "images": [7, "a", "b"]}))
    assert "images[0]: 'image' must be a path" in wrong


def test_pictures_without_placeholders_come_before_the_first_question() -> None:
    row: dict[str, Any] = {
        "conversations": turns("What?", "A cat.", system="s"),
        "images": ["a.png"],
    }
    content = dialogue_of(row, row["conversations"]).messages[1]["content"]
    assert content == [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]
    assert "<image>" in dialogue_of({}, turns("<image>", "a")).messages[0]["content"]


def test_fields_without_a_meaning_are_named_once(tmp_path, caplog) -> None:
    rows = [{**ROWS["LLM_Chat"], "id": i, "source": "x"} for i in range(3)]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([*rows, ROWS["LLM_Chat"]]))
    template = get_template(load_tokenizer("smollm2"), "LLM_Chat")
    for _ in range(2):  # made, and mapped again
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="main"):
            load_dataset_split(path, "LLM_Chat", template, cache_dir=tmp_path / "cache")
        told = [r.getMessage() for r in caplog.records if "nothing reads" in r.getMessage()]
        expected = "fields that nothing reads, and their rows: 'id' (3), 'source' (3)"
        assert told == [f"{path}: {expected}"]


def test_every_format_of_ours_says_what_it_reads() -> None:
    open_to_rewards = {name for name, form in LOADERS.items() if form.fields is None}
    assert open_to_rewards == {"LLM_GRPO", "LLM_RLHF"}


def test_the_last_turn_alone_is_trained_where_the_trainer_is_told_so(
    tiny_model_path, tmp_path, monkeypatch
) -> None:
    from main.trainer.lora import Trainer

    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"conversations": turns("q", "first", "r", "second")}]))
    given = {"from_pretrained": tiny_model_path, "data_path": path}
    for which, expected in (
        ("last", "second<|im_end|>"),
        ("all", "first<|im_end|>second<|im_end|>"),
    ):
        trainer = Trainer(**given, train_turns=which)
        row = trainer.train_data[0]
        kept = [i for i, k in zip(row["input_ids"], row["loss_mask"], strict=True) if k]
        assert trainer.tokenizer.decode(kept) == expected
    path.write_text(json.dumps([{"context": "q", "target": "a"}]))
    with pytest.raises(ConfigError, match="train_turns='last' changes nothing"):
        Trainer(**given, loader_name="LLM_Pure", train_turns="last")
