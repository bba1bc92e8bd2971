"""Merging: the adapted model's outputs stay, or the adapter stays beside its base."""

import logging

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from main.errors import ModelError
from main.models import load_adapter, load_model
from main.models.logits import probe_prompts, prompt_logits
from main.models.merging import merge
from main.predictor.hf import Predictor
from main.utils.merge_model import merge_model
from main.utils.parity import parity

IDS = torch.arange(3, 15).reshape(2, 6)
KINDS: dict[str, dict] = {
    "head": {"target_modules": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens"]},
    "head and embedding": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "bias": {"target_modules": ["q_proj"], "lora_bias": True},
    "dora head": {"target_modules": ["lm_head", "up_proj"], "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [5, 9]}},
    "replicated": {"target_modules": ["q_proj"], "layer_replication": [[0, 2], [1, 2]]},
}
CANNOT = {"bias": "peft cannot merge it", "replicated": "changed a logit by"}


def scatter(model) -> None:
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name or "trainable_tokens_delta" in name:
            torch.nn.init.normal_(weight.data, std=0.3)
            weight.data += "magnitude" in name


@pytest.fixture
def write(tmp_path, tiny_model_path):
    """A base with an adapter of plain peft, both as folders, and the adapted model's logits."""

    def write(kind: str, tied: bool):
        config = LlamaConfig.from_pretrained(tiny_model_path, tie_word_embeddings=tied)
        torch.manual_seed(0)
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        LlamaForCausalLM(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(base)
        adapted = get_peft_model(model, LoraConfig(r=4, **KINDS[kind])).eval()
        scatter(adapted)
        adapted.save_pretrained(adapter)
        fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
        with torch.no_grad():
            return base, adapter, fresh(IDS).logits

    return write


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_predictor_in_float32_gives_pefts_own_logits(write, kind, tied, caplog):
    base, adapter, expected = write(kind, tied)
    with caplog.at_level(logging.WARNING, logger="main"):
        model = Predictor(base, peft_path=adapter).model
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    kept = isinstance(model, PeftModel)
    assert kept == (kind in CANNOT)
    assert ("stays beside its base" in caplog.text) == kept


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_merge_model_writes_pefts_own_logits_or_says_why_not(write, kind, tied, tmp_path):
    base, adapter, expected = write(kind, tied)
    if kind in CANNOT:
        with pytest.raises(ModelError, match=rf"{CANNOT[kind]} .*nothing was written"):
            merge_model(base, adapter, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    merge_model(base, adapter, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_parity_finds_an_adapted_head_on_a_tied_model_equal(write):
    base, adapter, _ = write("head", True)
    report = parity(base, adapter, limit=2, max_new_tokens=4, vllm=False)
    assert report.equal, report.table


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False])
def test_what_a_merge_would_change_is_taken_back_and_the_adapter_works_on(write, tied, monkeypatch):
    base, adapter, expected = write("head and embedding", tied)
    adapted = load_adapter(load_model(base), adapter)
    from peft.tuners.lora import Linear

    own = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 1.5 * own(self, name))
    found = merge(adapted)
    assert "merging in float32 changed a logit by" in found.problem
    assert found.model is adapted
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    model = adapted.get_base_model()
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    one, two = (layer.base_layer.weight for layer in layers)
    assert (one is two) == tied


def test_a_layer_that_is_not_merged_at_all_is_an_error_and_no_model(write, monkeypatch):
    base, adapter, _ = write("head", False)
    adapted = load_adapter(load_model(base), adapter)
    from peft.tuners.lora import Linear

    monkeypatch.setattr(Linear, "merge", lambda self, **_: None)
    with pytest.raises(ModelError, match="the merged model cannot be used"):
        merge(adapted)


def test_the_probe_reaches_both_ends_of_the_vocabulary_and_asks_for_no_image(tiny_model_path):
    model = load_model(tiny_model_path)
    rows = model.config.vocab_size
    model.config.image_token_id = 1
    probe = probe_prompts(model)
    flat = [i for prompt in probe for i in prompt]
    assert max(flat) == rows - 1
    assert min(flat) < 10
    assert 1 not in flat
    assert all(logits.shape == (16, rows) for logits in prompt_logits(model, probe))
