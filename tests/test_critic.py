"""The critic values the state before each token and leaves the policy's numbers alone."""

import json

import pytest
import torch
from tiny_task import tiny_model

from main.errors import MissingFileError, ModelError
from main.trainer.policy.logprobs import LogprobModel
from main.trainer.policy.reference import Reference
from main.trainer.ppo.critic import CRITIC, ActorCritic

IDS = torch.tensor([[1, 5, 9, 2, 7, 3], [4, 8, 6, 10, 0, 0]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0]]).bool()
KINDS = ["head", "detached", "adapter"]


def actor_critic(kind="head"):
    model = ActorCritic(tiny_model(), kind)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.value_head.weight)
    torch.nn.init.normal_(model.value_head.bias)
    for name, parameter in model.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(model):
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_a_new_critic_values_everything_zero():
    assert ActorCritic(tiny_model())(IDS, MASK).values.abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_the_policy_alone(kind):
    model = actor_critic(kind)
    expected = LogprobModel(model.model)(IDS, MASK, entropy=True)
    found = model(IDS, MASK, entropy=True)
    assert torch.equal(found.logprobs, expected.logprobs)
    assert torch.equal(found.entropy, expected.entropy)


def test_a_value_is_the_heads_of_the_state_before_the_token():
    model = actor_critic()
    states = model.causal_lm().base_model(input_ids=IDS).last_hidden_state.detach()
    expected = [
        float(
            model.value_head.weight[0].detach() @ (10 * h / h.square().sum().sqrt())
            + model.value_head.bias.detach()
        )
        for row in range(2)
        for t in range(6)
        if MASK[row, t]
        for h in [states[row, t - 1]]
    ]
    assert model(IDS, MASK).values.tolist() == pytest.approx(expected, rel=1e-5)


def test_the_token_itself_and_those_after_it_do_not_change_its_value():
    model = actor_critic()
    other = IDS.clone()
    other[0, 3:] = 11
    before, after = model(IDS, MASK).values, model(other, MASK).values
    # Tokens 2 and 3 of row 0: their states are before position 3.
    torch.testing.assert_close(before[:2], after[:2])
    assert not torch.allclose(before[2:4], after[2:4], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_critics_gradient_goes(kind):
    model = actor_critic(kind)
    model(IDS, MASK).values.square().sum().backward()
    names = gradients(model)
    lora = {name for name in names if "lora_" in name}
    assert "value_head.weight" in names and "value_head.bias" in names
    if kind == "detached":
        assert not lora
    else:
        wanted = ".critic." if kind == "adapter" else ".default."
        assert lora and all(wanted in name for name in lora)
    assert all("base_layer" not in name for name in names)


def test_the_heads_gradient_by_hand():
    """V = w . u + b with |u| = 10: dV^2/2 / dw = V u, / db = V, summed over tokens."""
    model = actor_critic("detached")
    out = model(IDS, MASK)
    hidden = LogprobModel(model.model)(IDS, MASK).hidden
    state = (10 * hidden / hidden.norm(dim=-1, keepdim=True)).detach()
    (out.values.square().sum() / 2).backward()
    values = out.values.detach()
    torch.testing.assert_close(model.value_head.weight.grad[0], values @ state)
    torch.testing.assert_close(model.value_head.bias.grad[0], values.sum())


def test_policy_and_critic_adapter_are_trained_by_one_backward_pass():
    model = actor_critic("adapter").train()
    reference = Reference(model.model, starts_as_base=True)
    with reference.active():
        LogprobModel(model.model)(IDS, MASK)
    out = model(IDS, MASK)
    (out.logprobs.sum() + out.values.sum()).backward()
    missing = [n for n, p in model.named_parameters() if "lora_" in n and p.grad is None]
    assert not missing
    assert model.model.active_adapter == "default"


def test_the_critic_adapter_is_a_copy_that_goes_its_own_way():
    policy = tiny_model()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model = ActorCritic(policy, "adapter")
    named = dict(model.named_parameters())
    for name, parameter in named.items():
        if f".{CRITIC}." in name:
            assert torch.equal(parameter, named[name.replace(f".{CRITIC}.", ".default.")])
            assert parameter.requires_grad and parameter.dtype == torch.float32
    before = model(IDS, MASK).logprobs
    with torch.no_grad():
        for name, parameter in named.items():
            if f".{CRITIC}." in name:
                parameter.mul_(2)
    assert torch.equal(before, model(IDS, MASK).logprobs)


def test_the_value_is_float32_under_autocast():
    model = actor_critic()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = model(IDS, MASK).values
    assert values.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_critic_is_taken_back_bit_equal(kind, tmp_path):
    first = actor_critic(kind)
    first.save_critic(tmp_path)
    second = ActorCritic(first.model if kind != "adapter" else actor_critic().model, kind)
    second.load_critic(tmp_path)
    assert torch.equal(second(IDS, MASK).values, first(IDS, MASK).values)
    assert json.loads((tmp_path / "critic.json").read_text())["hidden_size"] == 32


def test_a_critic_of_another_hidden_size_or_kind_is_refused(tmp_path):
    model = actor_critic()
    with pytest.raises(MissingFileError, match="holds no critic"):
        model.load_critic(tmp_path)
    model.save_critic(tmp_path)
    with pytest.raises(ModelError, match="critic='head', this trainer has critic='adapter'"):
        actor_critic("adapter").load_critic(tmp_path)
    settings = json.loads((tmp_path / "critic.json").read_text()) | {"hidden_size": 64}
    (tmp_path / "critic.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="hidden_size=64, this trainer has hidden_size=32"):
        model.load_critic(tmp_path)
