"""The reference stays the starting policy, whatever kind of start the adapter has."""

import pytest
import torch
from tiny import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from main.models import LoraOptions, add_adapter
from main.trainer.reference import Reference

IDS = torch.tensor([[1, 5, 9, 2, 7]])
KINDS = [
    ({}, True),
    ({"use_dora": True}, True),
    ({"modules_to_save": ["lm_head"]}, True),
    ({"init_lora_weights": "pissa"}, False),
    ({"init_lora_weights": False}, False),
    ({"init_lora_weights": False, "modules_to_save": ["lm_head"], "use_dora": True}, False),
]


def policy(**kind):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    options = LoraOptions(lora_r=4, lora_dropout=0.3, **kind)
    return add_adapter(LlamaForCausalLM(config), options)


def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(("kind", "starts_as_base"), KINDS)
def test_the_reference_stays_at_the_start_while_the_policy_moves(kind, starts_as_base):
    model = policy(**kind)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        start = logits(model.eval())
    model.train()
    reference = Reference(model, starts_as_base)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        logits(model).logsumexp(-1).sum().backward()
        optimizer.step()
    with reference.active():
        found = logits(model)
    torch.testing.assert_close(found, start, rtol=1e-6, atol=1e-6)
    assert model.training
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    with torch.no_grad():
        assert not torch.allclose(logits(model.eval()), start, atol=1e-3)


def test_the_trained_adapter_alone_is_saved(tmp_path):
    from safetensors.torch import load_file

    from main.models import save_adapter

    model = policy(init_lora_weights=False)
    Reference(model, starts_as_base=False)
    save_adapter(model, tmp_path)
    assert not [n for n in load_file(tmp_path / "adapter_model.safetensors") if "reference" in n]


def test_an_error_inside_leaves_the_policy_as_it_was():
    model = tiny_model()
    reference = Reference(model, starts_as_base=True)
    with pytest.raises(RuntimeError, match="stop"), reference.active():
        raise RuntimeError("stop")
    assert model.training and not model._adapters_disabled
