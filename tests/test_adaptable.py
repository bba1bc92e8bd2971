"""'all-linear' is every layer that an adapter changes, and no other; the others are named."""

import logging
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from main.errors import ModelError
from main.models import LoraOptions, add_adapter, probe
from main.models.adaptable import out_of_reach

SIZES: dict[str, Any] = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
ATTENTION: dict[str, Any] = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
MAMBA = transformers.MambaConfig(**SIZES, state_size=8)
FAMILIES: dict[str, tuple[Any, set[str]]] = {
    "mamba": (MAMBA, {"dt_proj"}),
    "llama": (transformers.LlamaConfig(**SIZES, **ATTENTION), set()),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig(
            **SIZES, **ATTENTION, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
        ),
        set(),
    ),
    # a router that returns two tensors
    "llama4": (
        transformers.Llama4TextConfig(
            **SIZES, **ATTENTION, head_dim=8, num_local_experts=2, intermediate_size_mlp=48
        ),
        {"router"},
    ),
    # a product group by group is none that an adapter can be added to
    "deepseek_v4": (transformers.DeepseekV4Config(**SIZES), {"o_a_proj"}),
    # the indexer of sparse attention chooses what is looked at: no gradient reaches it
    "deepseek_v32": (transformers.DeepseekV32Config(**SIZES), {"weights_proj", "wk", "wq_b"}),
}


@pytest.fixture(autouse=True)
def own_notes(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    probe.forget()


def made(config: Any) -> Any:
    torch.manual_seed(0)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return kind(config)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_out_of_reach_are_found(name):
    config, expected = FAMILIES[name]
    with torch.device("meta"):
        model = made(config)
    assert out_of_reach(model) == expected


def test_every_adapter_of_all_linear_takes_a_gradient_and_what_is_left_out_is_said(caplog):
    with caplog.at_level(logging.WARNING, logger="main"):
        policy = add_adapter(made(MAMBA), LoraOptions(lora_r=2))
    assert "none on dt_proj, which it would not change" in caplog.text
    trained = {n: p for n, p in policy.named_parameters() if p.requires_grad}
    assert {n.split(".lora_")[0].rpartition(".")[2] for n in trained} == {"in_proj", "x_proj"}
    for name, parameter in trained.items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter.data, std=0.1)
    ids = torch.arange(24).reshape(2, 12)
    policy(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained.values())


def test_a_layer_out_of_reach_is_refused_where_it_is_named():
    with pytest.raises(ModelError, match=r"no adapter on dt_proj changes what this Mamba"):
        add_adapter(made(MAMBA), LoraOptions(lora_r=2, target_modules=["x_proj", "dt_proj"]))
    add_adapter(made(MAMBA), LoraOptions(lora_r=2, target_modules=["x_proj"]))
