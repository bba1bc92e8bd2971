"""Completions are what the current policy would say, with the probabilities that it says them."""

import pytest
import torch
from tiny_task import VOCABULARY, tiny_model

from main.trainer.policy.logprobs import LogprobModel, scoring
from main.trainer.rollout.sampler import HFSampler, SamplingOptions

PROMPTS = [[1, 5, 9], [1, 5, 9], [2, 7], [3] * 12]
STOPS = (4, 11)


def sampler(model, **options):
    options = {"max_completion_length": 12} | options
    return HFSampler(model, SamplingOptions(**options), STOPS, pad_id=0)


def policy():
    """A policy that differs from its base, with dropout that must not be active."""
    model = tiny_model(dropout=0.5)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_the_trainers_own(temperature):
    model = policy()
    completions = sampler(model, temperature=temperature).sample(PROMPTS, range(4))
    assert model.training
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        ids = torch.tensor([prompt + completion.ids])
        mask = torch.arange(ids.shape[1])[None] >= len(prompt)
        with scoring(model):
            expected = LogprobModel(model)(ids, mask, temperature=temperature).logprobs
        torch.testing.assert_close(
            torch.tensor(completion.sampling_logprobs), expected, rtol=1e-4, atol=1e-5
        )


def test_a_completion_ends_with_the_first_end_token_or_is_cut():
    completions = sampler(policy(), max_completion_length=40).sample(PROMPTS * 6, range(24))
    assert {completion.ended for completion in completions} == {True, False}
    for completion in completions:
        stops = [i for i, token in enumerate(completion.ids) if token in STOPS]
        assert stops == ([len(completion.ids) - 1] if completion.ended else [])
        assert completion.ended or len(completion.ids) == 40
        assert len(completion.sampling_logprobs) == len(completion.ids)


def test_a_seed_fixes_a_completion_whatever_else_is_in_the_batch():
    model = policy()
    together = sampler(model).sample(PROMPTS, [7, 8, 9, 10])
    assert together[0].ids != together[1].ids  # equal prompts, other seeds
    for prompt, seed, expected in zip(PROMPTS, [7, 8, 9, 10], together, strict=True):
        alone = sampler(model).sample([prompt], [seed])[0]
        assert alone.ids == expected.ids
        assert alone.sampling_logprobs == pytest.approx(expected.sampling_logprobs, abs=1e-4)


def test_greedy_completions_need_no_seed_and_take_the_likeliest_token():
    model = policy()
    first, second = (sampler(model).sample(PROMPTS, [s] * 4, greedy=True) for s in (1, 2))
    assert [c.ids for c in first] == [c.ids for c in second]
    with scoring(model):
        logits = model(input_ids=torch.tensor([PROMPTS[3]])).logits[0, -1]
    assert first[3].ids[0] == int(logits.argmax())


def test_samples_follow_the_distribution():
    """2000 first tokens against the policy's own probabilities: chi-square, 60 degrees."""
    model = policy()
    count = 2000
    drawn = sampler(model, max_completion_length=1).sample([PROMPTS[0]] * count, range(count))
    found = torch.zeros(VOCABULARY)
    for completion in drawn:
        found[completion.ids[0]] += 1
    with scoring(model):
        expected = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1) * count
    assert float(((found - expected) ** 2 / expected).sum()) < 100  # 99.9 % quantile: 99.6


def test_a_changed_policy_is_followed_at_once():
    model = policy()
    ours = sampler(model)
    before = ours.sample(PROMPTS, range(4), greedy=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(-3)
    after = ours.sample(PROMPTS, range(4), greedy=True)
    assert [c.ids for c in before] != [c.ids for c in after]


def test_a_prompt_of_several_completions_is_run_once_and_they_are_what_they_are_alone():
    model = policy()
    prompts = [[3] * 12, *[[1, 5, 9]] * 5, [2, 7], [8, 8, 8], *[[1, 5, 9]] * 2]
    seen = []
    hook = model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    together = sampler(model).sample(prompts, range(10))
    hook.remove()
    # one row each of: the twelve threes; the two runs of (1, 5, 9), (8, 8, 8); (2, 7)
    assert [tuple(shape) for shape in seen[:3]] == [(1, 12), (3, 3), (1, 2)]
    assert seen[3][1] == 1
    for prompt, seed, found in zip(prompts, range(10), together, strict=True):
        (alone,) = sampler(model).sample([prompt], [seed])
        assert found.ids == alone.ids
        assert found.sampling_logprobs == pytest.approx(alone.sampling_logprobs, abs=1e-5)
