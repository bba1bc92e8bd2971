"""Rows one behind the other, without padding, have the values and gradients of padded rows."""

import pytest
import torch
from answer_sums import sequence_logprobs
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from main.models.compiled import compile_problems
from main.models.ragged import segments, states, use_ragged
from main.trainer.policy import branches
from main.trainer.policy.logprobs import LogprobModel

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
TAKEN = [
    (LlamaConfig, {}),
    (Qwen2Config, {}),
    (Qwen3Config, {"head_dim": 8}),
    (
        Qwen3MoeConfig,
        {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    (GemmaConfig, {"head_dim": 8}),
    (GraniteConfig, {}),
    (Olmo2Config, {}),
    (Phi3Config, {"sliding_window": None}),
    (MistralConfig, {"sliding_window": None}),
]
LEFT = [
    (MistralConfig, {"sliding_window": 4}),
    (Gemma2Config, {"head_dim": 8}),
    (BloomConfig, {"n_head": 4}),
    (MambaConfig, {"state_size": 4}),
]


def name_of(part):
    return getattr(part, "__name__", "")


def model_of(config_class, options):
    torch.manual_seed(0)
    sizes = SIZES
    if config_class in (GPT2Config, BloomConfig, OPTConfig, MambaConfig):
        sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    return AutoModelForCausalLM.from_config(config_class(**(sizes | options)))


@pytest.mark.parametrize(("config_class", "options"), TAKEN, ids=name_of)
def test_states_and_gradients_are_those_of_each_row_alone(config_class, options):
    model = model_of(config_class, options)
    plain = model_of(config_class, options)
    assert use_ragged(model)
    rows = [torch.randint(1, 61, (n,)) for n in (9, 1, 5)]
    plan = segments([[len(row)] for row in rows])
    positions = torch.cat([torch.arange(len(row)) for row in rows])[None]
    found = states(model, torch.cat(rows)[None], positions, plan)
    expected = torch.cat([plain.base_model(input_ids=r[None]).last_hidden_state[0] for r in rows])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize(("config_class", "options"), LEFT, ids=name_of)
def test_models_whose_layers_look_otherwise_are_left_as_they_are(config_class, options):
    model = model_of(config_class, options)
    before = model.config._attn_implementation
    assert not use_ragged(model)
    assert model.config._attn_implementation == before


def test_answers_see_their_prompt_and_not_each_other():
    model = model_of(LlamaConfig, {})
    assert use_ragged(model)
    prompt, first, second = (torch.randint(1, 61, (n,)) for n in (4, 3, 2))
    plan = segments([[4, 3, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5]])
    found = states(model, torch.cat([prompt, first, second])[None], positions, plan)
    for answer, place in ((first, slice(4, 7)), (second, slice(7, 9))):
        alone = model.base_model(input_ids=torch.cat([prompt, answer])[None]).last_hidden_state[0]
        torch.testing.assert_close(found[place], alone[4:], rtol=1e-5, atol=1e-5)


def test_a_model_that_takes_rows_without_padding_still_takes_a_padded_batch():
    model, plain = model_of(LlamaConfig, {}), model_of(LlamaConfig, {})
    assert use_ragged(model)
    ids = torch.randint(1, 61, (2, 7))
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    found = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    assert torch.equal(found, plain(input_ids=ids, attention_mask=mask).logits[mask.bool()])


def test_logprobs_of_padded_rows_are_the_same_with_their_lengths():
    lengths = [9, 1, 5]
    ids = torch.zeros(3, 9, dtype=torch.long)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 61, (length,))
        mask[row, 1:length] = torch.rand(length - 1) < 0.7
    model = model_of(LlamaConfig, {})
    padded = LogprobModel(model)(ids, mask, entropy=True)
    assert use_ragged(model)
    packed = LogprobModel(model, ragged=True)(
        ids, mask, entropy=True, lengths=[[length] for length in lengths]
    )
    for found, expected in zip(packed, padded, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_answers_that_share_their_prompt_have_the_logprobs_of_repeated_prompts():
    prompts = [[3, 4, 5], [6]]
    answers = [[[7, 8], [9, 10, 11]], [[12], [13, 14]]]
    model = model_of(LlamaConfig, {})
    apart = branches.lay_out(prompts, answers, 0, share=False)
    shared = branches.lay_out(prompts, answers, 0, share=True)
    expected = sequence_logprobs(LogprobModel(model), **apart)
    assert use_ragged(model)
    for layout in (apart, shared):
        found = sequence_logprobs(LogprobModel(model, ragged=True), **layout)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_compiled_with_gain_is_refused_by_name():
    model = model_of(LlamaConfig, {})
    (problem,) = compile_problems(model, bf16=True, one_copy=True)
    assert problem == "torch_compile=True needs a GPU: the model is on cpu."
