"""The log-probabilities against plain transformers logits: values, entropies, gradients."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from main.trainer.policy import logprobs
from main.trainer.policy.logprobs import LogprobModel

VOCABULARY = 97


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def adapted(model: nn.Module, **options) -> nn.Module:
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    input_ids = torch.randint(0, VOCABULARY, (3, 11))
    loss_mask = torch.rand(3, 11) < 0.5
    loss_mask[:, 0] = False
    return input_ids, loss_mask


def by_hand(
    model: nn.Module, input_ids: torch.Tensor, loss_mask: torch.Tensor, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the full logits, one row and one token at a time."""
    scores, entropies = [], []
    for ids, mask in zip(input_ids, loss_mask, strict=True):
        logits = model(input_ids=ids[None]).logits[0].float() / temperature
        for t in range(1, len(ids)):
            if mask[t]:
                distribution = torch.distributions.Categorical(logits=logits[t - 1])
                scores.append(distribution.log_prob(ids[t]))
                entropies.append(distribution.entropy())
    return torch.stack(scores), torch.stack(entropies)


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def assert_same(model: nn.Module, temperature: float) -> None:
    input_ids, loss_mask = batch()
    weights = torch.linspace(-1, 2, int(loss_mask.sum()))
    output = LogprobModel(model)(input_ids, loss_mask, temperature=temperature, entropy=True)
    (output.logprobs @ weights + 0.3 * (output.entropy @ weights)).backward()
    ours = gradients(model)
    scores, entropies = by_hand(model, input_ids, loss_mask, temperature)
    (scores @ weights + 0.3 * (entropies @ weights)).backward()
    theirs = gradients(model)
    torch.testing.assert_close(output.logprobs, scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(output.entropy, entropies, rtol=1e-5, atol=1e-6)
    assert ours.keys() == theirs.keys() and ours
    for name, grad in ours.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_bytes", [4 * VOCABULARY, 2**27], ids=["one_row", "one_chunk"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_head_gives_the_values_and_gradients_of_full_logits(
    monkeypatch, temperature, chunk_bytes, tied
):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", chunk_bytes)
    assert_same(adapted(llama(tied)), temperature)


def test_a_trained_head_gives_the_values_and_gradients_of_full_logits(monkeypatch):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 3 * 4 * VOCABULARY)
    assert_same(adapted(llama(), modules_to_save=["lm_head"]), 0.9)


def test_a_soft_cap_on_logits_is_applied():
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
        attn_implementation="eager",  # type: ignore[call-arg]
    )
    assert_same(adapted(Gemma2ForCausalLM(config)), 1.0)


def test_padding_on_either_side_changes_nothing():
    model = LogprobModel(adapted(llama()).eval())
    input_ids, loss_mask = batch()
    alone = [model(i[None], m[None]).logprobs for i, m in zip(input_ids, loss_mask, strict=True)]
    pad = torch.zeros(3, 4, dtype=torch.long)
    no = torch.zeros(3, 4, dtype=torch.bool)
    kept = torch.ones_like(loss_mask)
    right = model(torch.cat([input_ids, pad], 1), torch.cat([loss_mask, no], 1))
    left = model(
        torch.cat([pad, input_ids], 1),
        torch.cat([no, loss_mask], 1),
        attention_mask=torch.cat([no, kept], 1),
    )
    for padded in (right, left):
        torch.testing.assert_close(padded.logprobs, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_no_logits_of_the_whole_vocabulary_are_kept_for_the_backward_pass():
    model = adapted(llama())
    input_ids, loss_mask = batch()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        LogprobModel(model)(input_ids, loss_mask)
    tokens = int(loss_mask.sum())
    assert kept and torch.Size([tokens, VOCABULARY]) not in kept


def test_an_empty_selection_has_a_zero_gradient():
    model = adapted(llama())
    input_ids, loss_mask = batch()
    LogprobModel(model)(input_ids, torch.zeros_like(loss_mask)).logprobs.sum().backward()
    assert all(float(grad.abs().sum()) == 0 for grad in gradients(model).values())


@pytest.mark.parametrize("plain_head", [True, False])
def test_an_entropy_without_gradient_has_the_same_value_and_moves_nothing(plain_head):
    model = LogprobModel(adapted(llama()))
    if not plain_head:
        model.causal_lm().config.logits_scaling = 2.0
    ids = torch.arange(12).view(2, 6)
    mask = torch.ones(2, 6, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
    expected = model(ids, mask, entropy=True).entropy
    found = model(ids, mask, entropy=True, entropy_gradient=False)
    assert torch.equal(found.entropy, expected) and not found.entropy.requires_grad
    assert expected.requires_grad and found.logprobs.requires_grad


@pytest.mark.parametrize(
    "options", [{}, {"modules_to_save": ["lm_head"]}], ids=["frozen", "trained"]
)
def test_the_concentration_is_the_log_of_the_sum_of_squared_probabilities(monkeypatch, options):
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 3 * 4 * VOCABULARY)
    model = adapted(llama(), **options)
    input_ids, loss_mask = batch()
    found = LogprobModel(model)(input_ids, loss_mask, temperature=0.8, concentration=True)
    p = (model(input_ids=input_ids).logits / 0.8).softmax(-1)
    expected = p.square().sum(-1).log()[:, :-1][loss_mask[:, 1:]]
    assert found.concentration is not None and not found.concentration.requires_grad
    torch.testing.assert_close(found.concentration, expected.detach(), rtol=1e-5, atol=1e-6)
    found.logprobs.sum().backward()
    assert LogprobModel(model)(input_ids, loss_mask).concentration is None
