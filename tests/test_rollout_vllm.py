"""Completions drawn by an engine in this process: as test_rollout.py, and it follows.

Two engines serve all tests, one that follows by merged weights and one that does by the adapter;
their policies get other adapter weights from test to test.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_models import ENGINE, policy_on, save_tiny, scatter, scored

from main.errors import ConfigError, GenerationError, ModelError
from main.models import LoraOptions, add_adapter, load_tokenizer
from main.trainer.policy.logprobs import scoring
from main.trainer.rollout.following import AdapterFolder, check_plain_lora
from main.trainer.rollout.sampler import HFSampler, SamplingOptions

PROMPTS = [[1, 5, 9], [1, 5, 9], [2, 7], [3] * 12]
STOPS = (4, 11)
VOCABULARY = 61


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"), VOCABULARY)


@pytest.fixture(scope="module", params=["merged", "adapter"])
def shared(base, request):
    from main.trainer.rollout.colocated import VLLMSampler

    options = SamplingOptions(max_completion_length=12)
    engine = {**ENGINE, "skip_tokenizer_init": True}
    merged = None if request.param == "merged" else False  # a CPU's default is to merge
    sampler = VLLMSampler(policy_on(base), options, STOPS, 0, base, merged=merged, **engine)
    assert sampler.merged == (request.param == "merged")
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(shared):
    """The shared engine, with the adapter and the options that every test starts from."""
    scatter(shared.policy, seed=0)
    shared.policy.train()
    shared.options = SamplingOptions(max_completion_length=12)
    return shared


@pytest.mark.vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_the_trainers_own(sampler, temperature):
    sampler.options = SamplingOptions(max_completion_length=12, temperature=temperature)
    completions = sampler.sample(PROMPTS, range(4))
    assert sampler.policy.training
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        torch.testing.assert_close(
            torch.tensor(completion.sampling_logprobs),
            scored(sampler.policy, prompt, completion, temperature),
            rtol=1e-4,
            atol=1e-4,
        )


@pytest.mark.vllm
def test_a_completion_ends_with_the_first_end_token_or_is_cut(sampler):
    sampler.options = SamplingOptions(max_completion_length=40)
    completions = sampler.sample(PROMPTS * 6, range(24))
    assert {completion.ended for completion in completions} == {True, False}
    for completion in completions:
        stops = [i for i, token in enumerate(completion.ids) if token in STOPS]
        assert stops == ([len(completion.ids) - 1] if completion.ended else [])
        assert completion.ended or len(completion.ids) == 40
        assert len(completion.sampling_logprobs) == len(completion.ids)


@pytest.mark.vllm
def test_a_seed_fixes_a_completion_whatever_else_is_in_the_batch(sampler):
    together = sampler.sample(PROMPTS, [7, 8, 9, 10])
    assert together[0].ids != together[1].ids  # equal prompts, other seeds
    for prompt, seed, expected in zip(PROMPTS, [7, 8, 9, 10], together, strict=True):
        alone = sampler.sample([prompt], [seed])[0]
        assert alone.ids == expected.ids
        assert alone.sampling_logprobs == pytest.approx(expected.sampling_logprobs, abs=1e-4)


@pytest.mark.vllm
def test_more_prompts_than_fit_into_one_pass_are_drawn_with_their_seeds(sampler):
    """80 x 100 tokens: vLLM would cut a prompt in two, which kills its engine on a CPU."""
    prompts = [[n % 57 + 1] * 100 for n in range(80)]
    drawn = sampler.sample(prompts, range(80))
    for n in (0, 41, 79):
        (alone,) = sampler.sample([prompts[n]], [n])
        assert drawn[n].ids == alone.ids


@pytest.mark.vllm
def test_greedy_completions_are_those_of_transformers(sampler):
    first, second = (sampler.sample(PROMPTS, [s] * 4, greedy=True) for s in (1, 2))
    assert [c.ids for c in first] == [c.ids for c in second]
    theirs = HFSampler(sampler.policy, sampler.options, STOPS, 0)
    assert [c.ids for c in first] == [c.ids for c in theirs.sample(PROMPTS, range(4), greedy=True)]


@pytest.mark.vllm
def test_samples_follow_the_distribution(sampler):
    """2000 first tokens against the policy's own probabilities: chi-square, 60 degrees."""
    count = 2000
    sampler.options = SamplingOptions(max_completion_length=1)
    drawn = sampler.sample([PROMPTS[0]] * count, range(count))
    found = torch.zeros(VOCABULARY)
    for completion in drawn:
        found[completion.ids[0]] += 1
    with scoring(sampler.policy):
        logits = sampler.policy(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    expected = logits.softmax(-1) * count
    assert float(((found - expected) ** 2 / expected).sum()) < 100  # 99.9 % quantile: 99.6


@pytest.mark.vllm
def test_a_changed_policy_is_followed_at_once_and_the_same_one_is_not_sent_again(sampler):
    before = sampler.sample(PROMPTS, range(4), greedy=True)
    number = sampler.folder.number
    assert sampler.sample(PROMPTS, range(4), greedy=True) == before
    assert sampler.folder.number == number
    for seed in (5, 6):
        scatter(sampler.policy, seed, std=0.6)
        after = sampler.sample(PROMPTS, range(4), greedy=True)
        assert [c.ids for c in before] != [c.ids for c in after]
        for prompt, completion in zip(PROMPTS, after, strict=True):
            expected = scored(sampler.policy, prompt, completion).tolist()
            assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-3)
        before = after
    assert sampler.folder.number == number + 2
    left = [] if sampler.merged else [str(sampler.folder.number)]
    assert [p.name for p in sampler.folder.root.iterdir()] == left  # merged weights are large


@pytest.mark.vllm
def test_a_stale_sampler_is_refused(sampler, monkeypatch):
    sampler.sample(PROMPTS, range(4))
    scatter(sampler.policy, 7, std=0.6)
    with monkeypatch.context() as broken:
        broken.setattr(sampler, "_switch", lambda: None)  # the new adapter never arrives
        for _ in range(2):  # not only the first time
            with pytest.raises(GenerationError, match=r"does not follow the policy.*nats"):
                sampler.sample(PROMPTS, range(4))
    assert len(sampler.sample(PROMPTS, range(4))) == 4


@pytest.mark.vllm
def test_a_failed_update_is_made_again(sampler, monkeypatch):
    sampler.sample(PROMPTS, range(4))
    scatter(sampler.policy, 8, std=0.6)
    with monkeypatch.context() as broken:
        broken.setattr(sampler.folder, "write", lambda policy, folder: folder.mkdir())  # no files
        with pytest.raises((GenerationError, ModelError)):
            sampler.sample(PROMPTS, range(4))
    for prompt, completion in zip(PROMPTS, sampler.sample(PROMPTS, range(4)), strict=True):
        expected = scored(sampler.policy, prompt, completion).tolist()
        assert completion.sampling_logprobs == pytest.approx(expected, abs=1e-3)


@pytest.mark.vllm
def test_no_prompts_give_no_completions(sampler):
    assert sampler.sample([], []) == []


@pytest.mark.vllm
def test_grpo_trains_on_the_completions_of_an_engine(tmp_path, small_model_path, monkeypatch):
    from main.trainer.grpo import Trainer
    from main.trainer.grpo.trainer import GRPOTask

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    base = save_tiny(tmp_path / "base", tokenizer=load_tokenizer(small_model_path), context=256)
    rows = [{"prompt": [{"role": "user", "content": f"Say {n}."}]} for n in range(4)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = {"train": "rows.jsonl"}
    trainer = Trainer(from_pretrained=base, data_path=data, max_length=128, lora_r=4)

    contexts: set[int] = set()

    class Watched(GRPOTask):
        def draw(self, *arguments: Any, **options: Any) -> Any:
            sampler: Any = self.sampler
            contexts.add(sampler.engine.context)
            return super().draw(*arguments, **options)

    monkeypatch.setattr(trainer, "configured", lambda options: Watched(trainer, options))

    def even(completion_ids, **columns):
        return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]

    results = list(
        trainer(reward_func=even, per_device_train_batch_size=8, num_generations=4, num_epochs=2,
                max_completion_length=8, lr=1e-2, use_vllm=True, vllm_mode="colocate",
                save_strategy="no", report_to="none")
    )  # fmt: skip
    assert [result.step for result in results] == [2, 4]
    assert contexts == {128 + 8}  # not the model's 256
    for train in (result.train for result in results):
        assert train["sampling_mismatch"] < 1e-4  # nats, though a step of lr 1e-2 moves it by more
        assert train["reward/std"] > 0 and train["completion_length"] > 1
    assert results[1].train["grad_norm"] > 0


def test_the_adapter_is_written_only_when_it_changed_and_removed_at_the_end(base):
    folder = AdapterFolder(policy_on(base))
    assert folder.update()
    assert not folder.update()
    assert (folder.path / "adapter_model.safetensors").is_file()
    scatter(folder.policy, 3)
    assert folder.update()
    folder.close()
    assert not folder.root.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [({"use_dora": True}, "use_dora=True"), ({"modules_to_save": ["lm_head"]}, "modules_to_save")],
)
def test_a_policy_that_vllm_cannot_follow_is_refused(base, options, named):
    from transformers import LlamaForCausalLM

    policy = add_adapter(LlamaForCausalLM.from_pretrained(base), LoraOptions(**options))
    with pytest.raises(ConfigError, match=f"cannot follow an adapter with {named}"):
        check_plain_lora(policy)
