"""Families are decoded from the states that they keep where a measurement says so, else anew."""

import logging
from typing import Any

import pytest
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from main.models import probe
from main.predictor.decode import decode
from main.predictor.decoding import Decoding
from main.predictor.keeps_states import _tell, keeps_states
from main.predictor.sampling import GenerationOptions

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPTS = [[*range(3, 12)], [20, 21, 22], [5, 9, 13, 17, 21]]


@pytest.fixture(autouse=True)
def own_notes(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    probe.forget()
    yield
    probe.forget()


def lively(kind: Any, config: Any) -> Any:
    torch.manual_seed(0)
    model = kind(config).eval()
    probe.enliven(model)
    return model


def answers(model: Any, options: GenerationOptions | None = None) -> list[list[int]]:
    rows = [Decoding(i, ids, 6 - i) for i, ids in enumerate(PROMPTS)]
    for _ in decode(model, rows, options or GenerationOptions(), (), 0):
        pass
    return [row.completion_ids for row in rows]


@torch.no_grad()
def whole(model: Any) -> list[list[int]]:
    """Greedy tokens of each prompt, every one from a pass over all that is before it."""
    found = []
    for i, prompt in enumerate(PROMPTS):
        ids = list(prompt)
        for _ in range(6 - i):
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        found.append(ids[len(prompt) :])
    return found


class ForgetfulConfig(LlamaConfig):
    model_type = "forgetful-for-this-test"


class ForgetfulForCausalLM(LlamaForCausalLM):
    """Takes a cache and does nothing with it, as a model does that swallows keywords."""

    config_class = ForgetfulConfig

    def forward(self, *args, past_key_values=None, use_cache=None, **kwargs):
        for name in ("position_ids", "attention_mask"):
            kwargs.pop(name, None)
        return super().forward(*args, use_cache=False, **kwargs)


FAMILIES: dict[str, tuple[Any, Any, bool | None]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES), True),
    "forgetful": (ForgetfulForCausalLM, ForgetfulConfig(**SIZES), False),
    "mamba": (
        transformers.MambaForCausalLM,
        transformers.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=8),
        None,  # as its release of transformers has it
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4),
        True,
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_answered_as_each_row_computed_whole(name, caplog):
    kind, config, keeps = FAMILIES[name]
    model = lively(kind, config)
    _tell.cache_clear()
    with caplog.at_level(logging.WARNING, logger="main"):
        found = [answers(model), answers(model)]
    assert found[0] == found[1] == whole(model)
    assert len({token for row in found[0] for token in row}) > 1
    assert keeps is None or keeps_states(model) == keeps
    told = caplog.text.count("cannot go on from the states that it keeps")
    assert told == (not keeps_states(model))


def test_what_is_computed_anew_takes_every_option_as_what_is_kept():
    model = lively(LlamaForCausalLM, LlamaConfig(**SIZES))
    options = GenerationOptions(repetition_penalty=1.7, no_repeat_ngram_size=2)
    kept = answers(model, options)
    assert keeps_states(model)
    probe._OF_MODEL[model] = dict.fromkeys(probe._OF_MODEL[model], "recomputes")
    assert not keeps_states(model)
    assert answers(model, options) == kept != answers(model)
