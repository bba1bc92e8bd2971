"""Adapters that plain peft wrote: what it loads, we load, with its own result as the reference."""

import logging
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from main.errors import ModelError
from main.models import load_adapter, load_model, save_adapter

ROWS = 64
IDS = torch.arange(1, 13).reshape(2, 6)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def lora(**options) -> LoraConfig:
    given: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"]} | options
    return LoraConfig(**given)


KINDS = {
    "head": lora(target_modules=["lm_head"]),
    "embedding": lora(target_modules=["embed_tokens"]),
    "both": lora(target_modules=["lm_head", "embed_tokens", "v_proj"]),
    "saved head": lora(modules_to_save=["lm_head"]),
    "saved embedding": lora(modules_to_save=["embed_tokens"]),
    "saved both": lora(modules_to_save=["lm_head", "embed_tokens"]),
    "tokens": lora(trainable_token_indices=[3, 60]),
    "lora_bias": lora(lora_bias=True),
    "bias": lora(bias="lora_only"),
    "dora": lora(use_dora=True),
    "rslora": lora(use_rslora=True),
    "patterns": lora(rank_pattern={"q_proj": 2}, alpha_pattern={"1.mlp.down_proj": 32}),
    "one layer": lora(layers_to_transform=[1]),
    "replicated": lora(layer_replication=[[0, 2], [1, 2]]),
    "ia3": peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj"]),
    "adalora": peft.AdaLoraConfig(init_r=4, target_modules=["q_proj"], total_step=10),
}


def write_base(folder, tied: bool):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ROWS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def scatter(model) -> None:
    """Move whatever the adapter trains."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight) * 0.2


def written(folder, base, config, rows: int | None = None, **saving):
    """The adapter of plain peft on a base that may be resized, in `folder`; and its logits."""
    model = LlamaForCausalLM.from_pretrained(base)
    if rows is not None:
        torch.manual_seed(2)
        model.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(model, config)
    scatter(adapted)
    adapted.eval().save_pretrained(folder, **saving)
    return adapted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_plain_peft_computes_what_peft_computes(tmp_path, kind, tied):
    base = write_base(tmp_path / "base", tied)
    written(tmp_path / "adapter", base, KINDS[kind])
    reference = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    ours = load_adapter(load_model(base), tmp_path / "adapter")
    with torch.no_grad():
        expected = reference.eval()(IDS).logits
        torch.testing.assert_close(ours(IDS).logits, expected, rtol=1e-6, atol=1e-6)
        assert (load_model(base)(IDS).logits - expected).abs().max() > 1e-3


RESIZED = {
    "plain": (lora(), {"save_embedding_layers": True}),
    "head": (lora(target_modules=["lm_head", "q_proj"]), {"save_embedding_layers": True}),
    "whole": (lora(modules_to_save=["lm_head", "embed_tokens"]), {}),
    "whole only": (
        lora(modules_to_save=["lm_head", "embed_tokens"]),
        {"save_embedding_layers": False},
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [ROWS + 3, ROWS - 4])
@pytest.mark.parametrize("kind", RESIZED)
def test_the_base_is_resized_as_the_embeddings_in_the_file_say_and_that_is_told(
    tmp_path, kind, rows, tied, caplog
):
    base = write_base(tmp_path / "base", tied)
    config, saving = RESIZED[kind]
    if kind == "head" and not tied:
        pytest.skip("peft writes the adapted layer alone: see the test of a missing embedding")
    expected = written(tmp_path / "adapter", base, config, rows, **saving)
    with caplog.at_level(logging.WARNING, logger="main"):
        ours = load_adapter(load_model(base), tmp_path / "adapter")
    assert f"resized from {ROWS} to {rows} rows" in caplog.text
    ids = torch.tensor([[1, rows - 1, rows - 2, 5]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, expected(ids).logits, rtol=1e-6, atol=1e-6)
    assert ours.config.vocab_size == rows


def test_new_tokens_trained_by_their_indices_resize_a_tied_base(tmp_path):
    base = write_base(tmp_path / "base", True)
    config = lora(trainable_token_indices=[ROWS, ROWS + 1, 4])
    expected = written(tmp_path / "adapter", base, config, ROWS + 2)
    ours = load_adapter(load_model(base), tmp_path / "adapter")
    ids = torch.tensor([[1, ROWS, ROWS + 1, 4]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, expected(ids).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        (lora(trainable_token_indices=[ROWS, ROWS + 1]), False),  # no new rows for the output
        (lora(trainable_token_indices=[ROWS + 1]), True),  # nor the first of the new rows
        (lora(modules_to_save=["embed_tokens"]), True),
        (lora(target_modules=["lm_head"]), True),
    ],
)
def test_rows_that_neither_base_nor_adapter_has_are_refused(tmp_path, config, tied):
    base = write_base(tmp_path / "base", tied)
    written(tmp_path / "adapter", base, config, ROWS + 2, save_embedding_layers=False)
    with pytest.raises(ModelError, match=r"another size .*66.*the base has 64 rows"):
        load_adapter(load_model(base), tmp_path / "adapter")


@pytest.mark.parametrize("kind", ["head", "embedding", "both", "tokens", "lora_bias"])
def test_what_a_file_brought_is_in_the_next_file_too(tmp_path, kind):
    base = write_base(tmp_path / "base", True)
    written(tmp_path / "adapter", base, KINDS[kind])
    model = load_adapter(load_model(base), tmp_path / "adapter", trainable=True)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable
    assert not any("base_layer" in name for name in trainable)
    scatter(model)
    expected = model(IDS).logits
    save_adapter(model, tmp_path / "again")
    names = [load_file(tmp_path / f / "adapter_model.safetensors") for f in ("adapter", "again")]
    assert set(names[0]) == set(names[1])
    reference = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base), tmp_path / "again"
    )
    torch.testing.assert_close(reference(IDS).logits, expected, rtol=1e-6, atol=1e-6)


PROMPTS = {
    "prompt tuning": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix tuning": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p tuning": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
}


@pytest.mark.parametrize("kind", PROMPTS)
def test_virtual_tokens_are_refused_by_name(tmp_path, kind):
    base = write_base(tmp_path / "base", False)
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(base), PROMPTS[kind])
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=rf"is {kind}, which puts virtual tokens"):
        load_adapter(load_model(base), tmp_path / "adapter")
