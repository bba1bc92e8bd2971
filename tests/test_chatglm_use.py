"""An original ChatGLM folder in the predictor and the trainer, as any other model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_templates import load_tokenizer as load_other
from chatglm_checkpoints import OBSERVATION, USER, byte, piece, write_checkpoint

from main.dialogue.ends import stop_token_ids
from main.dialogue.prompts import answer_lead
from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.models import load_config, load_model, load_tokenizer
from main.predictor.hf import Predictor
from main.trainer.lora import Trainer

KINDS = ["chatglm2", "chatglm3", "glm4"]
QUESTION = [{"role": "user", "content": "你好 I love philosophy"}]
CALL = [
    {"role": "user", "content": "北京天气"},
    {"role": "assistant", "metadata": "get", "content": "call(1)"},
    {"role": "observation", "content": "21"},
    {"role": "assistant", "content": "好的"},
]


@pytest.fixture(params=KINDS)
def folder(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write_checkpoint(tmp_path / request.param, request.param)


def text_of(encoded, tokenizer) -> list[str]:
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.turns]


def test_what_is_trained_follows_the_prompt_of_inference_id_by_id(folder):
    template = ChatTemplate(load_tokenizer(folder))
    dialogue = [*QUESTION, {"role": "assistant", "content": "好的 </s> sop"}]
    if folder.name == "glm4":  # whose tokenizer reads control tokens, but not these
        dialogue[1]["content"] = "好的 </s> sop <unk>"
    encoded = template.encode(dialogue)
    prompt = template.encode_prompt(QUESTION)
    assert encoded.input_ids[: len(prompt)] == prompt
    assert encoded.turns == [(len(prompt), len(encoded.input_ids))]
    model = load_model(folder)
    assert encoded.input_ids[-1] in stop_token_ids(model, template.tokenizer)


@pytest.mark.parametrize("folder", ["chatglm3", "glm4"], indirect=True)
def test_tool_calls_are_trained_to_the_observation_and_the_answer_to_the_next_user(folder):
    template = ChatTemplate(load_tokenizer(folder))
    blank = " " if folder.name == "chatglm3" else ""
    assert text_of(template.encode(CALL), template.tokenizer) == [
        f"get\n{blank}call(1)<|observation|>",
        f"{chr(10) if not blank else ' ' + chr(10)}{blank}好的<|user|>".lstrip(" "),
    ]


def test_metadata_is_refused_where_the_template_writes_none():
    template = ChatTemplate(load_other("qwen", "qwen2_5"))
    with pytest.raises(DataError, match="writes no 'metadata'"):
        template.encode(CALL)


def test_the_blanks_before_an_answer_are_known(folder):
    expected = {"chatglm2": "", "chatglm3": "\n ", "glm4": "\n"}[folder.name]
    assert answer_lead(load_tokenizer(folder)) == expected


def answers_by_the_token(model, tokenizer, prompt_ids: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt_ids])
    for _ in range(count):
        with torch.no_grad():
            best = model(ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best.view(1, 1)], dim=1)
    return ids[0, len(prompt_ids) :].tolist()


def test_the_predictor_answers_as_the_model_does_alone_and_in_a_batch(folder):
    predictor = Predictor(folder)
    tokenizer = load_tokenizer(folder)
    prompt = ChatTemplate(tokenizer).encode_prompt(QUESTION)
    expected = answers_by_the_token(load_model(folder), tokenizer, prompt, 8)
    stops = stop_token_ids(predictor.model, tokenizer)
    cut = next((i for i, token in enumerate(expected) if token in stops), len(expected))
    text = str(tokenizer.decode(expected[:cut], skip_special_tokens=True)).rstrip("\ufffd")
    alone = predictor(QUESTION[0]["content"], max_new_tokens=8)
    assert alone == [text.removeprefix(predictor.voice.lead)]
    batch = predictor(["天气", QUESTION[0]["content"], "a b c"], max_new_tokens=8)
    assert batch[1] == alone[0]


class Script:
    """Wraps a model so that it says given tokens, whatever it is asked."""

    def __init__(self, model, tokens):
        self.model, self.tokens, self.forward = model, list(tokens), model.forward

    def __enter__(self):
        def forward(*args, **kwargs):
            output = self.forward(*args, **kwargs)
            output.logits = torch.zeros_like(output.logits)
            output.logits[..., self.tokens.pop(0)] = 1
            return output

        self.model.forward = forward

    def __exit__(self, *_):
        self.model.forward = self.forward


@pytest.mark.parametrize("folder", ["chatglm3"], indirect=True)
@pytest.mark.parametrize("stop", [2, USER, OBSERVATION])
def test_an_answer_stops_at_the_next_role_and_is_shown_without_its_header(folder, stop):
    predictor = Predictor(folder)
    says = [piece("▁"), 13, piece("▁"), piece("好的"), stop, piece("a")]
    with Script(predictor.model, says):
        assert predictor("a", max_new_tokens=6) == ["好的"]


@pytest.mark.parametrize("folder", ["chatglm3"], indirect=True)
def test_a_stream_shows_whole_characters_and_ends_as_the_answer_does(folder):
    predictor = Predictor(folder)
    dragon = [byte(value) for value in "龘".encode()]
    says = [piece("▁"), 13, piece("▁"), *dragon, 13, *dragon, 13, dragon[0]]
    with Script(predictor.model, says):
        items = list(predictor.predict_stream("a", max_new_tokens=len(says)))
    assert [chunks[0] for chunks, _ in items] == ["龘", "\n", "龘", "\n"]
    with Script(predictor.model, says):
        assert predictor("a", max_new_tokens=len(says)) == ["龘\n龘\n"]


@pytest.mark.parametrize("loader_name", ["ChatGLM_Chat", "ChatGLM_LoRA"])
def test_a_trained_adapter_answers_what_it_learnt(folder, loader_name):
    question, answer = "天气", "I love 北京 a1"
    row: dict[str, Any] = {
        "conversations": [*user(question), {"role": "assistant", "content": answer}]
    }
    if loader_name == "ChatGLM_LoRA":
        row = {"context": question, "target": answer}
    Path("train.json").write_text(json.dumps([row] * 4, ensure_ascii=False), encoding="utf-8")
    trainer = Trainer(
        tokenizer=load_tokenizer(folder),
        config=load_config(folder),
        from_pretrained=folder,
        loader_name=loader_name,
        data_path={"train": "train.json"},
        max_length=64,
        batch_size=4,
        lora_r=8,
        modules_to_save=["lm_head"],
        task_name="demo",
    )
    options = {"num_epochs": 80, "lr": 2e-2, "save_strategy": "no", "report_to": "none"}
    results = list(trainer(**options, lr_scheduler_type="constant"))
    assert results[-1].train["loss"] < 0.1 < results[0].train["loss"]
    trainer.save(Path("adapter"))
    predictor = Predictor(folder, peft_path="adapter")
    build = {"build_message": loader_name == "ChatGLM_Chat"}
    # a text after a context is joined to it; in a dialogue it begins with a blank of its own
    assert predictor(question, max_new_tokens=32, **build) == [answer]


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("folder", ["chatglm3"], indirect=True)
def test_checkpoints_carry_the_family_s_name_and_continue(folder):
    row = {"conversations": [*user("a"), {"role": "assistant", "content": "好的"}]}
    Path("train.json").write_text(json.dumps([row] * 2), encoding="utf-8")
    arguments = {
        "from_pretrained": folder,
        "loader_name": "ChatGLM_Chat",
        "data_path": "train.json",
        "task_name": "demo",
    }
    first = list(Trainer(**arguments)(num_epochs=1, report_to="none"))
    assert first[0].checkpoint and first[0].checkpoint.name == "ChatGLM_1"
    again = list(Trainer(**arguments, resume_path=first[0].checkpoint)(num_epochs=1))
    assert again[0].train["loss"] > 0
