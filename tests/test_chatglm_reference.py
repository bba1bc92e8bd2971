"""Against what the original code made of small random checkpoints: ids, logits, text, gradients.

The recorded data lies beside the project (shared/reference/chatglm); CHATGLM_REFERENCE may name
another place. Without it these tests are skipped; the other test_chatglm files need no such data.
"""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file

from main.chatglm.weights import rename
from main.dialogue.template import ChatTemplate
from main.models import load_config, load_model, load_tokenizer

PLACE = Path(os.environ.get("CHATGLM_REFERENCE", ROOT.parent / "shared/reference/chatglm"))
KINDS = ["chatglm2", "chatglm3", "glm4"]

pytestmark = pytest.mark.skipif(
    not PLACE.is_dir(), reason=f"no recorded data in {PLACE}; CHATGLM_REFERENCE may name its place"
)


@pytest.fixture(params=KINDS, scope="module")
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return load_model(PLACE / kind)


@pytest.fixture(scope="module")
def tensors(kind):
    return load_file(PLACE / kind / "goldens.safetensors")


@pytest.fixture(scope="module")
def tokenizer(kind):
    return load_tokenizer(PLACE / kind)


@pytest.fixture(scope="module")
def texts(kind):
    return json.loads((PLACE / kind / "goldens.json").read_text(encoding="utf-8"))["tokenizer"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["single", "batch", "long", "far"])
def test_logits_are_the_original_s(model, tensors, name):
    inputs = {
        key: tensors[f"{name}.{key}"]
        for key in ("input_ids", "attention_mask", "position_ids")
        if f"{name}.{key}" in tensors
    }
    kept = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    difference = (model(**inputs).logits - tensors[f"{name}.logits"])[kept]
    assert difference.abs().max() < 1e-5


@torch.no_grad()
def test_the_input_of_every_layer_is_the_original_s(model, tensors):
    states = model(tensors["single.input_ids"], output_hidden_states=True).hidden_states
    expected = tensors["single.hidden_states"]
    # the last one is taken before the final norm there and after it here
    for ours, theirs in zip(states[:-1], expected[:-1], strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert torch.allclose(states[-1], model.model.norm(expected[-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "output"),
    [("greedy.prompt", "greedy.output"), ("batch.input_ids", "greedy_batch.output")],
)
def test_greedy_text_is_the_original_s(model, tensors, prompt, output):
    mask = tensors.get(prompt.replace("input_ids", "attention_mask"), tensors[prompt])
    mask = mask if prompt.startswith("batch") else torch.ones_like(mask)
    generated = model.generate(
        tensors[prompt],
        attention_mask=mask,
        max_new_tokens=20,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
    )
    assert torch.equal(generated, tensors[output])


def test_loss_and_gradients_are_the_original_s(model, tensors):
    names = ("input_ids", "attention_mask", "position_ids", "labels")
    loss = model(**{name: tensors[f"train.{name}"] for name in names}).loss
    assert loss.item() == pytest.approx(tensors["train.loss"].item(), abs=1e-5)
    loss.backward()
    parameters = dict(model.named_parameters())
    compared = 0
    for name, gradient in tensors.items():
        if name.startswith("grad."):
            for ours, expected in rename(name[5:], gradient, model.config).items():
                assert torch.allclose(parameters[ours].grad, expected, rtol=0, atol=1e-5), ours
                compared += 1
    model.zero_grad()
    assert compared >= 20


def test_ids_of_every_text_are_the_original_s(tokenizer, texts):
    for case in texts["texts"]:
        assert tokenizer.encode(case["text"]) == case["encode"], case["text"]
        bare = tokenizer.encode(case["text"], add_special_tokens=False)
        assert bare == case["encode_no_special"], case["text"]
        assert tokenizer.decode(case["raw"]) == case["decode_raw"]
    assert tokenizer.encode(texts["long"]["text"]) == texts["long"]["encode"]


def test_a_padded_batch_is_the_original_s(tokenizer, texts):
    for name, options in (
        ("padding", {"padding": True}),
        ("padding_max_length_40", {"padding": "max_length", "max_length": 40}),
    ):
        batch = tokenizer(texts[name]["texts"], **options)
        assert batch.input_ids == texts[name]["input_ids"]
        assert batch.attention_mask == texts[name]["attention_mask"]


def test_a_pair_of_texts_is_the_original_s(tokenizer, texts, kind):
    pair = texts["pair"]
    if kind == "glm4":
        assert "error" in pair["input_ids"]  # the original cannot encode pairs
        return
    assert tokenizer(pair["text"], pair["text_pair"]).input_ids == pair["input_ids"]


def test_control_tokens_have_the_original_s_names_and_ids(tokenizer, texts):
    named = {n: i for n, i in texts["special_ids"].items() if n not in ("<bos>", "<eos>", "<pad>")}
    assert {name: tokenizer.convert_tokens_to_ids(name) for name in named} == named
    attributes = texts["attrs"]
    for name in ("eos_token_id", "pad_token_id", "padding_side"):
        assert getattr(tokenizer, name) == attributes[name]


def test_ids_of_every_dialogue_are_the_original_s(tokenizer, texts, kind):
    template = ChatTemplate(tokenizer)
    for case in texts["dialogues"]:
        messages = messages_of(case)
        plain = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert plain == case["input_ids"], case["name"]
        assert template.encode_prompt(messages) == case["input_ids"], case["name"]
        if kind == "chatglm2":
            answered = [*messages, {"role": "assistant", "content": case["answer"]}]
            assert template.encode(answered).input_ids == case["train_ids"], case["name"]


def messages_of(case) -> list[dict]:
    if "messages" in case:
        return case["messages"]
    query = {"role": case.get("role", "user"), "content": case["query"]}
    history = case["history"]
    if history and isinstance(history[0], list):
        roles = ("user", "assistant")
        history = [
            {"role": r, "content": c} for pair in history for r, c in zip(roles, pair, strict=True)
        ]
    return [*history, query]


def test_the_context_is_the_original_s_seq_length(kind):
    raw = json.loads((PLACE / kind / "config.json").read_text())
    assert load_config(PLACE / kind).max_position_embeddings == raw["seq_length"]
