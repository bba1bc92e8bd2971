"""A shared prompt gives the values and gradients of a prompt repeated before every answer."""

from typing import Any

import pytest
import torch
from answer_sums import sequence_logprobs
from tiny_task import VOCABULARY, tiny_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from main.trainer.policy.branches import lay_out, takes_branches, visible
from main.trainer.policy.logprobs import LogprobModel

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
PROMPTS = [7, 1, 12]
ANSWERS = [(3, 9), (5, 1), (2, 2)]


def groups(seed: int = 0):
    """Prompts and pairs of unequal length, of random tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count):
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    return [draw(n) for n in PROMPTS], [[draw(a), draw(b)] for a, b in ANSWERS]


def moved_model():
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return LogprobModel(model)


def value_and_gradients(model, tensors, weights):
    sums = sequence_logprobs(model, **tensors)
    (sums @ weights).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return sums.detach(), found


def test_shared_and_repeated_prompts_have_the_same_values_and_gradients():
    model, (prompts, answers) = moved_model(), groups()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.7])
    shared, shared_grad = value_and_gradients(model, lay_out(prompts, answers, 0, True), weights)
    apart, apart_grad = value_and_gradients(model, lay_out(prompts, answers, 0, False), weights)
    torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)
    assert shared_grad.keys() == apart_grad.keys() and shared_grad
    for name, grad in shared_grad.items():
        torch.testing.assert_close(grad, apart_grad[name], rtol=1e-4, atol=1e-5, msg=name)


def test_each_sum_is_that_of_plain_transformers_logits():
    model, (prompts, answers) = moved_model(), groups()
    found = sequence_logprobs(model, **lay_out(prompts, answers, 0, True)).tolist()
    expected = []
    for prompt, group in zip(prompts, answers, strict=True):
        for answer in group:
            ids = torch.tensor([[*prompt, *answer]])
            scores = model.model(input_ids=ids).logits[0].log_softmax(-1).detach()
            places = range(len(prompt), ids.shape[1])
            expected.append(sum(float(scores[t - 1, ids[0, t]]) for t in places))
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_rejected_answer_does_not_see_the_chosen_one():
    model, (prompts, answers) = moved_model(), groups()
    before = sequence_logprobs(model, **lay_out(prompts, answers, 0, True))
    changed = [[[(t + 1) % VOCABULARY for t in chosen], rejected] for chosen, rejected in answers]
    after = sequence_logprobs(model, **lay_out(prompts, changed, 0, True))
    torch.testing.assert_close(after[1::2], before[1::2], rtol=0, atol=0)
    assert not torch.isclose(after[::2], before[::2]).any()


def test_padding_and_the_other_rows_of_a_batch_change_nothing():
    model, (prompts, answers) = moved_model(), groups()
    together = sequence_logprobs(model, **lay_out(prompts, answers, 5, True))
    alone = [
        sequence_logprobs(model, **lay_out([p], [a], 0, True))
        for p, a in zip(prompts, answers, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_the_layout_of_one_small_row():
    tensors = lay_out([[9, 8]], [[[1], [2, 3]]], 0, True)
    assert tensors["input_ids"].tolist() == [[9, 8, 1, 2, 3]]
    assert tensors["branch"].tolist() == [[0, 0, 1, 2, 2]]
    assert tensors["position_ids"].tolist() == [[0, 1, 2, 2, 3]]
    assert tensors["lengths"] == [1, 2]
    assert visible(tensors["branch"])[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    apart = lay_out([[9, 8]], [[[1], [2, 3]]], 0, False)
    assert apart["input_ids"].tolist() == [[9, 8, 1, 0], [9, 8, 2, 3]]
    assert "position_ids" not in apart


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (LlamaForCausalLM(LlamaConfig(**SMALL)), True),
        (Qwen2ForCausalLM(Qwen2Config(**SMALL)), True),
        (
            GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2)),
            True,
        ),
        (LlamaForCausalLM(LlamaConfig(**SMALL | {"attn_implementation": "eager"})), False),
        (MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)), False),
        (BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_head=2)), False),
    ],
    ids=["llama", "qwen2", "gpt2", "eager", "sliding_window", "alibi"],
)
def test_models_that_would_not_obey_the_mask_are_told_apart(model, expected):
    assert takes_branches(model) is expected


def test_every_model_said_to_obey_does():
    prompts, answers = groups()
    for model in (
        Qwen2ForCausalLM(Qwen2Config(**SMALL)),
        GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2)),
    ):
        scored = LogprobModel(model.eval())
        shared = sequence_logprobs(scored, **lay_out(prompts, answers, 0, True))
        apart = sequence_logprobs(scored, **lay_out(prompts, answers, 0, False))
        torch.testing.assert_close(shared, apart, rtol=1e-5, atol=1e-5)
