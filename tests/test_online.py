"""Samples on their way to the loss, and what the records say about them."""

import math

import pytest
import torch

from main.trainer.online.batch import collate
from main.trainer.online.records import describe, divergence, samples_table, sampling_mismatch
from main.trainer.online.sample import Prompt, Sample, note_tokens, seed_of


def row(number: int, prompt: list[int]) -> dict:
    return {"row": number, "prompt_ids": prompt, "prompt": '"what?"', "columns": "{}"}


def drawn(number: int, ids: list[int], ended: bool = True, prompt=(1, 2, 3), of: int = 0) -> Sample:
    prompted = Prompt(row(number, list(prompt)), of)
    logprobs = torch.full((len(ids),), -0.5)
    sample = Sample(prompted, ids, ended, "text", sampling_logprobs=logprobs)
    sample.reward, sample.parts = float(len(ids)), {"length": float(len(ids)), "rare": math.nan}
    return sample


def test_a_seed_is_the_samples_own():
    prompts = [Prompt(row(4, []), 0), Prompt(row(4, []), 1), Prompt(row(5, []), 0)]
    seeds = [seed_of(7, 3, prompt, attempt) for prompt in prompts for attempt in (0, 1)]
    assert len(set(seeds)) == 6 and seeds[0] == seed_of(7, 3, Prompt(row(4, [9]), 0))
    assert seed_of(8, 3, prompts[0]) != seeds[0] != seed_of(7, 4, prompts[0])


@pytest.mark.parametrize("shared", [False, True])
def test_samples_become_tensors_of_completions_whether_prompts_are_shared_or_not(shared):
    samples = [drawn(4, [7, 8]), drawn(4, [9], of=1), drawn(5, [5, 6, 7], prompt=(3,))]
    note_tokens(samples, old_logprobs=torch.arange(6.0), advantages=-torch.arange(6.0))
    samples[1].mask = torch.zeros(1, dtype=torch.bool)
    batch = collate(samples, 0, shared)
    assert batch.present.sum(1).tolist() == [2, 1, 3] and batch.mask.sum(1).tolist() == [2, 0, 3]
    assert batch.old_logprobs is not None and batch.advantages is not None
    assert batch.old_logprobs.tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]
    assert batch.advantages[2].tolist() == [-3, -4, -5] and batch.ref_logprobs is None
    assert batch.input_ids.shape == ((2, 6) if shared else (3, 5))
    assert batch.input_ids[batch.branch > 0].tolist() == [7, 8, 9, 5, 6, 7]
    assert batch.by_completion(torch.arange(1, 7)).tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    total, count = batch.over(torch.ones(3, 3))
    assert (float(total), count) == (5, 5)


def test_a_part_that_applies_to_no_completion_keeps_its_key():
    metrics = describe([drawn(1, [5, 6]), drawn(2, [5], ended=False)], ["length", "rare"])
    assert metrics == {
        "rewards/length/mean": (3.0, 2),
        "rewards/rare/mean": (0, 0),
        "reward/mean": (3.0, 2),
        "completion_length": (3, 2),
        "ended": (1, 2),
    }


def test_kl_is_nats_a_token_and_its_sum_a_completion_has_a_name_of_its_own():
    samples = [drawn(1, [5, 6, 7]), drawn(2, [5])]
    note_tokens(
        samples,
        old_logprobs=torch.tensor([-1.0, -1.0, -1.0, -2.0]),
        ref_logprobs=torch.tensor([-1.5, -1.0, -2.0, -2.5]),
        entropy=torch.tensor([1.0, 2.0, 3.0, 6.0]),
    )
    # k1: 0.5 + 0 + 1 + 0.5 over four tokens of two completions
    assert divergence(samples, "k1") == {
        "kl": (2.0, 4),
        "kl/completion": (2.0, 2),
        "entropy": (12.0, 4),
    }
    # |sampled - old|: the gold answer of the second was not sampled
    samples[1].sampling_logprobs = torch.tensor([math.nan])
    assert sampling_mismatch(samples) == {"sampling_mismatch": (1.5, 3)}


def test_the_table_shows_the_credit_where_it_is_known():
    first, second = drawn(1, [5, 6]), drawn(2, [5])
    first.advantages, first.notes = torch.tensor([1.0, 2.0]), {"seen": "x"}
    lines = samples_table([first, second], ["length"]).splitlines()
    assert lines[0] == "| prompt | completion | length | reward | advantage | seen |"
    assert lines[2] == "| what? | text | 2 | 2 | 1.5 | x |"
    assert lines[3] == "| what? | text | 1 | 1 |  |  |"
