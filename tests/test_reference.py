"""The reference stays the starting policy, whatever kind of start the adapter has."""

import pytest
import torch
from tiny_task import tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from main.models import LoraOptions, add_adapter
from main.models.adapters import adapter_tensors
from main.trainer.policy.reference import MovingReference, Reference

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


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
def test_a_moving_reference_follows_the_policy_tensor_by_tensor(kind):
    model = policy(**kind)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reference = MovingReference(model)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(torch.randn_like(parameter))
        start, now = reference.tensors, adapter_tensors(model)
        reference.follow(0.25)
    assert len(start) == len(trainable) == len(reference.tensors)
    for name, found in reference.tensors.items():
        torch.testing.assert_close(found, 0.75 * start[name] + 0.25 * now[name])
    with torch.no_grad():
        reference.follow(1.0)
        expected = logits(model.eval())
    with reference.active():
        torch.testing.assert_close(logits(model), expected)
    kept = MovingReference(model, start)  # as a checkpoint had it
    assert all(torch.equal(t, start[n]) for n, t in kept.tensors.items())
    again = MovingReference(model)  # of another run
    assert all(torch.equal(t, now[n]) for n, t in again.tensors.items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(trainable)


def test_it_follows_as_trls_reference_does():
    callbacks = pytest.importorskip("trl.trainer.callbacks")
    model = policy()
    reference = MovingReference(model)
    now = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in now.values():
            parameter.add_(1.0)
    trained = adapter_tensors(model)
    pairs = [(own, trained[name]) for name, own in reference.tensors.items()]
    target, source = (
        torch.nn.ParameterList([pair[i].detach().clone() for pair in pairs]) for i in (0, 1)
    )
    callbacks.SyncRefModelCallback._sync_target_model(source, target, 0.6)
    reference.follow(0.6)
    for found, expected in zip(reference.tensors.values(), target, strict=True):
        torch.testing.assert_close(found, expected.data, rtol=1e-6, atol=1e-7)
