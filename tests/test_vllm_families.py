"""Every model family gives the same greedy tokens by transformers and by vLLM."""

from typing import Any

import pytest
import torch
from chat_templates import load_tokenizer
from chatglm_checkpoints import MODULES, write_adapter, write_checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from vllm_models import ENGINE, adapters_of, make_adapter

from main.errors import ModelError
from main.predictor.hf import Predictor as HFPredictor
from main.predictor.vllm import Predictor
from main.utils.convert_chatglm import convert_chatglm

QUERIES = ["Hi", "What is the capital of France?", "写一个关于猫的句子。"]
TOKENS = 12
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
# As Llama 3.1's, but begun at 16 positions, so that short prompts feel it.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama3": lambda: LlamaConfig(**SIZE, rope_parameters=LLAMA3_ROPE),
    "qwen2_5": lambda: Qwen2Config(**SIZE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**SIZE),
}
HALF_TURNED = {"kv_channels": 32, "hidden_size": 64}  # ChatGLM with heads that vLLM's CPU build has


def write_family(folder, name):
    """A random checkpoint with the family's real vocabulary and chat template."""
    if name == "chatglm3":
        original = write_checkpoint(folder.with_name(name), name, **HALF_TURNED)
        return convert_chatglm(original, folder)
    tokenizer = load_tokenizer("llama3" if name == "llama3" else "qwen", name)
    config = FAMILIES[name]()
    config.vocab_size = len(tokenizer)
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("bias"):  # Qwen2's start at zero
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.vllm
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("llama3", "qwen2_5")),
        "qwen3",
        "chatglm3",
    ],
)
def test_greedy_tokens_are_those_of_transformers_with_and_without_an_adapter(tmp_path, name):
    base = write_family(tmp_path / "base", name)
    adapter = make_adapter(base, tmp_path / "adapter", 1)
    call = {"max_new_tokens": TOKENS}
    expected = [
        HFPredictor(base, path, dtype="float32", device="cpu").predict_with_logprobs(
            QUERIES, **call
        )
        for path in (None, adapter)
    ]
    with Predictor(base, adapter, dtype="float32", max_model_len=256, **ENGINE) as predictor:
        found = [
            predictor.predict_with_logprobs(QUERIES, peft_path=path, **call)
            for path in (None, adapter)
        ]
    assert ids(expected[0]) != ids(expected[1])
    for ours, theirs in zip(found, expected, strict=True):
        assert ids(ours) == ids(theirs)
        assert [a.text for a in ours] == [a.text for a in theirs]
        difference = max(
            abs(a - b)
            for one, other in zip(ours, theirs, strict=True)
            for a, b in zip(one.logprobs, other.logprobs, strict=True)
        )
        print(f"{name}: log-probabilities within {difference:.1e}")
        assert difference < 1e-3


def ids(answers):
    return [answer.token_ids for answer in answers]


@pytest.mark.vllm
def test_an_original_chatglm_folder_is_refused_with_the_command_that_converts_it(tmp_path):
    original = write_checkpoint(tmp_path / "chatglm3-6b")
    with pytest.raises(ModelError, match=r"convert_chatglm .*chatglm3-6b' --output DIR"):
        Predictor(original)


@pytest.mark.vllm
def test_an_adapter_of_the_original_code_is_refused_with_what_helps(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    adapters = adapters_of({"enable_lora": True})
    with pytest.raises(
        ModelError, match=r"names the layers of its model's original code.*Merge it into"
    ):
        adapters.voice(adapter)
