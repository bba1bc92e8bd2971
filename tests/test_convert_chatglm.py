"""An original ChatGLM folder written in transformers' form, which vLLM and servers open."""

import json
from typing import Any

import pytest
import torch
from chatglm_checkpoints import write_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from main.errors import ConfigError
from main.models import load_model, load_tokenizer
from main.predictor.hf import Predictor
from main.utils.convert_chatglm import convert_chatglm, main

IDS = torch.tensor([[1, 260, 7, 300, 45, 270, 99, 2]])
QUESTION = [{"role": "user", "content": "你好 I love philosophy"}]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_plain_transformers_opens_it_bit_for_bit_with_its_dialogues(tmp_path, kind):
    original = write_checkpoint(tmp_path / kind, kind)
    written = convert_chatglm(original, tmp_path / "written")
    model = AutoModelForCausalLM.from_pretrained(written)
    assert torch.equal(model(IDS).logits, load_model(original)(IDS).logits)
    options: dict[str, Any] = {
        "tokenize": True,
        "add_generation_prompt": True,
        "return_dict": False,
    }
    ours, plain = load_tokenizer(original), AutoTokenizer.from_pretrained(written)
    expected = ours.apply_chat_template(QUESTION, **options)
    assert plain.apply_chat_template(QUESTION, **options) == expected
    assert plain("this cat")["input_ids"] == ours("this cat")["input_ids"]
    answers = [Predictor(folder)(QUESTION, max_new_tokens=8) for folder in (original, written)]
    assert answers[0] == answers[1]


def test_weights_keep_the_dtype_of_the_checkpoint(tmp_path):
    original = write_checkpoint(tmp_path / "chatglm3-6b", torch_dtype="float16")
    main([str(original), "--output", str(tmp_path / "written")])
    assert json.loads((tmp_path / "written" / "config.json").read_text())["dtype"] == "float16"


def test_what_cannot_be_converted_is_refused(tmp_path, tiny_model_path):
    with pytest.raises(ConfigError, match="is no original ChatGLM folder"):
        convert_chatglm(tiny_model_path, tmp_path / "written")
    original = write_checkpoint(tmp_path / "chatglm3-6b")
    with pytest.raises(ConfigError, match=r"exists already\. Choose another"):
        convert_chatglm(original, original)
