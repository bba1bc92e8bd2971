"""'all-linear' means all: a mixture's experts are adapted, reloaded and merged as peft does."""

import logging
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Glm4MoeConfig,
    GptOssConfig,
    GraniteMoeConfig,
    MixtralConfig,
    Qwen3MoeConfig,
)

from main.errors import ModelError
from main.models import LoraOptions, add_adapter, load_adapter, load_model, save_adapter
from main.models.merging import merge

IDS = torch.arange(1, 13).reshape(2, 6)
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MIXTURES = {
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "mixtral": MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": GptOssConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2),
    "granitemoe": GraniteMoeConfig(
        **{k: v for k, v in SIZES.items() if k != "head_dim"},
        num_local_experts=4,
        num_experts_per_tok=2,
    ),
    "glm4_moe": Glm4MoeConfig(
        **SIZES,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    ),
}


def write(config, folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def train(model, options):
    adapted = add_adapter(model, options)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        adapted(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def _check_all_adapted(plain, adapted) -> None:
    """Each linear layer but the output's, and each weight of experts, has factors of its own."""
    linear = [n for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)]
    experts = [n for n, p in plain.named_parameters() if p.ndim == 3]
    layers = [m for m in adapted.modules() if hasattr(m, "lora_A") and len(m.lora_A)]
    assert experts
    assert len(layers) == len(linear) - 1 + len(experts)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", MIXTURES)
def test_experts_are_trained_reloaded_in_peft_and_merged_each_equal(name, tmp_path, caplog):
    base = write(MIXTURES[name], tmp_path / "base")
    with caplog.at_level(logging.INFO, logger="main"):
        adapted = train(load_model(base), LoraOptions(lora_r=6, lora_alpha=12))
    expected = adapted(IDS).logits.detach()
    config = adapted.peft_config["default"]
    assert set(config.rank_pattern.values()) == {3}  # 6 // 2 experts a token
    _check_all_adapted(load_model(base), adapted)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert f"{trained:,} of" in caplog.text
    assert all(parameter in caplog.text for parameter in config.target_parameters)
    bare = [n for n, p in adapted.named_parameters() if p.requires_grad and not p.abs().max() > 0]
    assert not bare
    save_adapter(adapted, tmp_path / "adapter")
    reference = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    again = load_adapter(load_model(base), tmp_path / "adapter")
    with torch.no_grad():
        assert (load_model(base)(IDS).logits - expected).abs().max() > 0.01
        torch.testing.assert_close(reference(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)
        merged = merge(again)
        assert not merged.problem
        torch.testing.assert_close(merged.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        merged.model.save_pretrained(tmp_path / "merged")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(saved(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def options_of(model: PeftModel) -> Any:
    """The configuration of its adapter, of a class that has LoRA's fields."""
    return model.peft_config["default"]


def test_the_rank_of_an_expert_is_at_least_one(tmp_path):
    model = load_model(write(MIXTURES["mixtral"], tmp_path / "base"))
    config = options_of(add_adapter(model, LoraOptions(lora_r=2)))
    assert set(config.rank_pattern.values()) == {1}


def test_experts_may_be_named_alone_or_left_out(tmp_path):
    base = write(MIXTURES["qwen3_moe"], tmp_path / "base")
    named = LoraOptions(target_modules=["q_proj", "experts.down_proj"])
    config = options_of(add_adapter(load_model(base), named))
    assert set(config.target_parameters) == {"mlp.experts.down_proj"}
    assert set(config.target_modules) == {"q_proj"}
    plain = add_adapter(load_model(base), LoraOptions(target_modules=["q_proj"], use_dora=True))
    assert not options_of(plain).target_parameters


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ({"lora_dropout": 0.1}, r"lora_dropout=0\.1"),
        ({"use_dora": True}, "use_dora=True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ],
)
def test_what_peft_cannot_do_on_experts_is_refused_by_what_to_leave_out(tmp_path, option, name):
    model = load_model(write(MIXTURES["qwen3_moe"], tmp_path / "base"))
    with pytest.raises(ModelError, match=rf"mlp\.experts\.gate_up_proj.*with {name}\. Leave that"):
        add_adapter(model, LoraOptions(**option))


def test_state_space_layers_are_adapted_where_peft_can(tmp_path):
    config = FalconH1Config(
        **SIZES, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    )
    model = load_model(write(config, tmp_path / "base"))
    adapted = add_adapter(model, LoraOptions(lora_r=2))
    names = options_of(adapted).target_modules
    assert "in_proj" in names
    assert "out_proj" not in names
    adapted(IDS, labels=IDS).loss.backward()
