"""PPO on a two-layer model: against a slow implementation, and what must never differ."""

import copy
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import gradient
from tiny_ppo import QUICK, disturb, make_trainer, samples_of, spread, started, trained

from main.errors import ConfigError, MissingFileError, ModelError, RewardError
from main.trainer.arguments import LoopOptions
from main.trainer.loop.optimizer import make_optimizer
from main.trainer.loop.task import MicroBatch
from main.trainer.online.kl import kl_estimate
from main.trainer.online.options import EpisodeOptions
from main.trainer.online.sample import Prompt
from main.trainer.ppo.options import PPOOptions
from main.trainer.rollout.sampler import Completion
from main.utils.reward_func import reward_exact

RECORDS = (
    *(
        "loss",
        "loss/policy",
        "loss/value",
        "reward/mean",
        "reward/std",
        "kl",
        "kl/completion",
        "entropy",
    ),
    *("clip_fraction", "explained_variance", "completion_length", "ended", "ratio"),
)
KINDS = ["head", "detached", "adapter"]


pytestmark = pytest.mark.usefixtures("own_folder")


def drawn(trainer, *sizes):
    """Micro-batches of the given sizes, from the first rows on."""
    rows = iter(range(len(trainer.train_data)))
    return [
        MicroBatch([Prompt(trainer.train_data[next(rows)]) for _ in range(size)]) for size in sizes
    ]


def kl_of(sample, estimator="k1"):
    return kl_estimate(sample.old_logprobs, sample.ref_logprobs, estimator)


def first_update(trainer, *sizes):
    return next(iter(trainer.updates(drawn(trainer, *sizes), 0)))


def test_the_guides_snippet_runs_as_written(tiny_model_path, encoder_path):
    from transformers import AutoConfig, AutoTokenizer

    import main.trainer.llm_rlhf
    from main.trainer.chatglm_rlhf_base import Trainer

    make_trainer(tiny_model_path, rows=4)  # writes the files
    registry = {"Wiki_Humans_RL_100": {"train": "train.jsonl", "dev": "dev.jsonl"}}
    Path("data").mkdir()
    Path("data/present.json").write_text(json.dumps(registry), encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path, trust_remote_code=True)
    config = AutoConfig.from_pretrained(tiny_model_path, trust_remote_code=True)
    trainer = Trainer(
        tokenizer=tokenizer,
        config=config,
        from_pretrained=str(tiny_model_path),
        reward_from_pretrained=str(encoder_path),
        loader_name="LLM_RLHF",
        data_path="Wiki_Humans_RL_100",
        ratio_for_rlhf=-1.0,
        max_length=1024,
        batch_size=4,
        task_name="Wiki-humans-rawrl-_20240101-120000",
    )
    results = []
    for i in trainer(
        num_epochs=2,
        weight_for_cos_and_jaccard=[0.5, 0.5],
        ppo_epsilon=0.15,
        lr=5e-4,
        ppo_epochs=3,
        alpha=0.5,
        beta=0.5,
        gamma=0,
    ):
        results.append(i)
    assert [r.step for r in results] == [3, 6]
    assert set(RECORDS) <= set(results[0].train)
    # Gold answers all return 1: there is nothing to explain.
    assert results[0].train["explained_variance"] == 0
    assert all(math.isfinite(value) for r in results for value in (r.train | r.eval).values())
    assert results[0].train["reward/mean"] == pytest.approx(1)  # gold answers
    assert {"reward/mean", "completion_length", "ended", "kl"} <= set(results[0].eval)
    assert main.trainer.llm_rlhf.Trainer is Trainer
    folder = Path("data_record/Wiki-humans-rawrl-_20240101-120000")
    assert "| prompt | completion | similarity | reward |" in (folder / "samples_2.md").read_text()


# -- the arithmetic


def slow_loss(trainer, samples, o):
    """The loss of a draw, token by token from the definitions, on plain transformers' logits."""
    terms = []
    for s in samples:
        ids = torch.tensor([s.prompt.ids + s.ids])
        states = trainer.causal_lm.model(input_ids=ids).last_hidden_state[0]
        head = trainer.actor_critic.value_head
        for t in range(len(s.ids)):
            state = states[len(s.prompt.ids) + t - 1]
            logp = torch.log_softmax(trainer.causal_lm.lm_head(state) / o.temperature, -1)
            ratio = (logp[s.ids[t]] - s.old_logprobs[t]).exp()
            a = s.advantages[t]
            bounded = min(max(ratio, 1 - o.ppo_epsilon), 1 + o.ppo_epsilon)
            policy = max(-ratio * a, -bounded * a)
            policy = policy * min(math.exp(s.old_logprobs[t] - s.sampling_logprobs[t]), 2)
            value = (head.weight[0] * 10 * state / state.norm()).sum() + head.bias[0]
            old = s.old_values[t]
            moved = old + min(max(value - old, -o.value_clip), o.value_clip)
            critic = max((value - s.returns[t]) ** 2, (moved - s.returns[t]) ** 2) / 2
            entropy = -(logp.exp() * logp).sum()
            terms.append(o.alpha * policy + o.beta * critic - o.gamma * entropy)
    return sum(terms) / len(terms)


def slow_experience(trainer, samples, o, online=True):
    """Whitened advantages and returns from each sample's own numbers, as plain sums."""
    everything = []
    scores = [s.reward - (0 if s.ended else o.missing_eos_penalty) for s in samples]
    middle = sum(scores) / len(scores)
    width = math.sqrt(sum((score - middle) ** 2 for score in scores) / len(scores))
    for s, score in zip(samples, scores, strict=True):
        length = len(s.ids)
        kl = [float(p - q) for p, q in zip(s.old_logprobs, s.ref_logprobs, strict=True)]
        rewards = [-o.kl_coef * k for k in kl]
        rewards[-1] += (score - middle) / width
        values = [*s.old_values.tolist(), float(trainer._last_values([s]))]
        deltas = [rewards[t] + o.discount * values[t + 1] - values[t] for t in range(length)]
        factor = o.discount * o.gae_lambda
        advantages = [
            sum(factor ** (n - t) * deltas[n] for n in range(t, length)) for t in range(length)
        ]
        returns = [a + v for a, v in zip(advantages, values[:-1], strict=True)]
        everything.append((advantages, returns))
    flat = [a for advantages, _ in everything for a in advantages]
    mean = sum(flat) / len(flat)
    spread = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat))
    return [([(a - mean) / spread for a in advantages], r) for advantages, r in everything]


def test_experience_loss_and_gradients_equal_a_slow_implementation(tiny_model_path):
    """Mixed lengths, cut and ended completions, a moved policy, every term switched on."""
    options = {"gamma": 0.01, "discount": 0.9, "gae_lambda": 0.8, "missing_eos_penalty": 0.3,
               "temperature": 0.7, "kl_coef": 0.2, "alpha": 0.7, "beta": 0.4,
               "bootstrap_truncated": True}  # fmt: skip
    trainer = started(make_trainer(tiny_model_path, rows=6, critic="head"), **options)
    disturb(trainer, std=0.05)
    sampler: Any = trainer.sampler
    sample, stop = sampler.sample, trainer.stop_ids[0]

    def some_end(prompts, seeds, greedy=False, limits=None):
        found = sample(prompts, seeds, greedy)
        return [
            Completion([*c.ids[: 1 + i], stop], [*c.sampling_logprobs[: 1 + i], -9.0], True)
            if i % 2
            else c
            for i, c in enumerate(found)
        ]

    sampler.sample = some_end
    update = first_update(trainer, 4, 2)
    samples, o = samples_of(update), trainer.options
    assert {s.ended for s in samples} == {True, False}
    for s, (advantages, returns) in zip(samples, slow_experience(trainer, samples, o), strict=True):
        assert s.advantages.tolist() == pytest.approx(advantages, rel=1e-4, abs=1e-5)
        assert s.returns.tolist() == pytest.approx(returns, rel=1e-5, abs=1e-6)

    disturb(trainer, std=0.05)  # now old and new differ, and some ratios are clipped
    batches = [trainer.collate(micro.items) for micro in update.micro_batches]
    totals = {"tokens": sum(batch.counts["tokens"] for batch in batches)}
    outputs = [trainer.loss(batch.tensors, totals) for batch in batches]
    loss = torch.stack([output.loss for output in outputs]).sum()
    assert 0 < sum(float(out.metrics["clip_fraction"][0]) for out in outputs) < totals["tokens"]
    loss.backward()
    ours = {n: gradient(p).clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad(set_to_none=True)
    expected = slow_loss(trainer, samples, o)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("critic", KINDS)
@pytest.mark.parametrize("ratio_for_rlhf", [1.0, -1.0])
def test_the_first_inner_steps_ratio_is_exactly_one(tiny_model_path, critic, ratio_for_rlhf):
    trainer = started(make_trainer(tiny_model_path, critic=critic, ratio_for_rlhf=ratio_for_rlhf))
    disturb(trainer)
    update = first_update(trainer, 3, 2)
    for micro in update.micro_batches:
        batch = trainer.collate(micro.items)
        metrics = trainer.loss(batch.tensors, batch.counts).metrics
        assert float(metrics["ratio"][0]) == metrics["ratio"][1] == batch.counts["tokens"]
        assert float(metrics["clip_fraction"][0]) == 0


def test_old_numbers_are_without_dropout_and_training_goes_on(tiny_model_path):
    trainer = started(make_trainer(tiny_model_path, lora_dropout=0.5))
    disturb(trainer)
    (first, *_) = samples_of(first_update(trainer, 4))
    assert trainer.model.training
    trainer.model.eval()
    ids = torch.tensor([first.prompt.ids + first.ids])
    with torch.no_grad():
        logits = trainer.causal_lm(input_ids=ids).logits[0, len(first.prompt.ids) - 1 : -1]
    expected = logits.log_softmax(-1).gather(-1, torch.tensor(first.ids)[:, None])[:, 0]
    torch.testing.assert_close(first.old_logprobs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shift", "advantage", "moves"),
    [(-0.5, 1.0, False), (-0.5, -1.0, True), (0.5, 1.0, True), (0.5, -1.0, False)],
    ids=["high ratio, good", "high ratio, bad", "low ratio, good", "low ratio, bad"],
)
def test_the_ratio_is_clipped_on_the_right_side(tiny_model_path, shift, advantage, moves):
    """ratio = exp(-shift): 1.65 or 0.61, both outside 1 +- 0.2."""
    trainer = started(make_trainer(tiny_model_path), beta=0.0)
    update = first_update(trainer, 2)
    for sample in samples_of(update):
        sample.old_logprobs = sample.old_logprobs + shift
        sample.advantages = torch.full_like(sample.advantages, advantage)
    batch = trainer.collate(update.micro_batches[0].items)
    out = trainer.loss(batch.tensors, batch.counts)
    out.loss.backward()
    moved = any(
        p.grad is not None and p.grad.abs().sum() > 0
        for n, p in trainer.model.named_parameters()
        if "lora_B" in n
    )
    assert moved is moves
    assert float(out.metrics["clip_fraction"][0]) == (0 if moves else batch.counts["tokens"])


def test_a_cut_completion_is_valued_by_the_state_after_its_last_token(tiny_model_path):
    trainer = started(make_trainer(tiny_model_path), bootstrap_truncated=True)
    disturb(trainer)
    for sample in samples_of(first_update(trainer, 4)):
        assert not sample.ended  # a random model does not end within 6 tokens
        ids = torch.tensor([sample.prompt.ids + sample.ids])
        with torch.no_grad():
            state = trainer.causal_lm.model(input_ids=ids).last_hidden_state[0, -1:]
            expected = trainer.actor_critic.value_head(state)
        assert float(trainer._last_values([sample])) == pytest.approx(float(expected), abs=1e-5)


def test_a_resumed_run_goes_on_with_the_mean_and_spread_of_its_scores(tiny_model_path):
    trainer = started(make_trainer(tiny_model_path))
    first_update(trainer, 4)
    state, scores = json.loads(json.dumps(trainer.state())), trainer.scores
    resumed = started(make_trainer(tiny_model_path))
    assert resumed.scores != scores and scores.number == 4
    resumed.load_state(state, trainer.tensors())
    assert resumed.scores == scores


def test_a_draw_of_equal_scores_earns_no_credit_for_the_divergence_alone(tiny_model_path):
    """Whitening would blow its noise up to advantages of size 1."""
    trainer = started(
        make_trainer(tiny_model_path),
        reward_func=lambda prompts, **columns: [3.0] * len(prompts),
        kl_coef=0.5,
    )
    disturb(trainer)
    for sample in samples_of(first_update(trainer, 4)):
        assert kl_of(sample).abs().sum() > 0 and (sample.advantages == 0).all()


def test_an_offline_batch_is_gold_answers_that_end_and_keep_their_mean(tiny_model_path):
    trainer = started(make_trainer(tiny_model_path, ratio_for_rlhf=0.0), reward_func=lambda **k: [
        1.0] * len(k["prompts"]))  # fmt: skip
    for sample in samples_of(first_update(trainer, 4, 4)):
        assert sample.ids in sample.row["gold_ids"] and sample.ended and sample.reward == 1
        assert (sample.advantages > 0).all()  # a new critic expects 0: nothing gold is lowered


def test_an_offline_batch_never_lowers_a_gold_answer(tiny_model_path):
    """Rewards 1 and -1 in turn, a new critic: half of the advantages would be negative."""
    trainer = started(
        make_trainer(tiny_model_path, ratio_for_rlhf=0.0),
        reward_func=lambda level, **columns: [(-1.0) ** n for n in level],
    )
    for sample in samples_of(first_update(trainer, 4, 4)):
        assert (sample.returns < 0).all() == (sample.reward < 0)
        assert (sample.advantages > 0).all() == (sample.reward > 0)
        assert (sample.advantages >= 0).all()


def test_online_batches_come_at_the_asked_rate_and_by_the_step_alone(tiny_model_path):
    trainer = make_trainer(tiny_model_path, ratio_for_rlhf=0.3).task(**QUICK)
    first = [trainer._is_online(step) for step in range(2000)]
    assert 0.25 < sum(first) / 2000 < 0.35
    assert first == [trainer._is_online(step) for step in range(2000)]
    trainer.setup.ratio_for_rlhf = 1.0
    assert all(trainer._is_online(step) for step in range(2000))


def test_the_reference_is_the_starting_policy_and_kl_starts_at_zero(tiny_model_path):
    first = make_trainer(tiny_model_path)
    disturb(first)
    first.save(Path("start"))
    trainer = started(make_trainer(tiny_model_path, actor_resume_path="start"))
    for sample in samples_of(first_update(trainer, 4)):
        torch.testing.assert_close(sample.old_logprobs, sample.ref_logprobs, rtol=0, atol=1e-6)
    start = [sample.ref_logprobs for sample in samples_of(first_update(trainer, 4))]
    disturb(trainer)
    moved = samples_of(first_update(trainer, 4))
    assert any(float(kl_of(sample).abs().sum()) > 0.01 for sample in moved)
    assert start  # the reference itself: see tests/test_reference.py


def test_the_kl_coefficient_follows_its_target(tiny_model_path):
    trainer = started(
        make_trainer(tiny_model_path), kl_coef=0.5, kl_target=0.001, kl_estimator="k3"
    )
    disturb(trainer)
    samples = samples_of(first_update(trainer, 4))
    assert sum(float(kl_of(sample, "k3").sum()) for sample in samples) / 4 > 0.0012
    assert trainer.kl_coef == pytest.approx(0.5 * 1.02)
    state = json.loads(json.dumps(trainer.state()))
    trainer.kl_coef = 0.0
    trainer.load_state(state, trainer.tensors())
    assert trainer.kl_coef == pytest.approx(0.5 * 1.02)


# -- whole runs


@pytest.mark.parametrize("critic", KINDS)
def test_everything_trained_moves_and_the_base_stays_bit_equal(tiny_model_path, critic):
    trainer = make_trainer(tiny_model_path, critic=critic)
    frozen = {n: p.clone() for n, p in trainer.model.named_parameters() if not p.requires_grad}
    before = trained(trainer)
    result = list(trainer(**QUICK | {"ppo_epochs": 3}))[-1]
    assert result.step == 6 and set(RECORDS) <= set(result.train)
    for name, value in trained(trainer).items():
        assert not torch.equal(value, before[name]), name
    named = dict(trainer.model.named_parameters())
    assert frozen and all(torch.equal(value, named[name]) for name, value in frozen.items())


def test_the_ratio_is_one_in_a_bf16_run_too(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    disturb(trainer)
    (result,) = trainer(**QUICK | {"bf16": True, "ppo_epochs": 1})
    assert result.step == 2 and result.train["ratio"] == 1 and result.train["clip_fraction"] == 0
    assert 0 < result.train["sampling_mismatch"] < 0.1  # sampled in float32, trained in bfloat16
    assert {p.dtype for p in trained(trainer).values()} == {torch.float32}


@pytest.mark.parametrize("ratio_for_rlhf", [1.0, -1.0])
def test_how_a_step_is_cut_changes_nothing(tiny_model_path, ratio_for_rlhf):
    found = []
    for size, accumulation in ((8, 1), (4, 2), (1, 8)):
        trainer = make_trainer(
            tiny_model_path, rows=16, batch_size=size, ratio_for_rlhf=ratio_for_rlhf
        )
        # Around a mean of 0 the head's bias has hardly a gradient: Adam would blow up rounding.
        options = QUICK | {"gradient_accumulation_steps": accumulation, "lr": 1e-3}
        options |= {"adam_epsilon": 1e-3}
        found.append((list(trainer(**options))[-1].train, trained(trainer)))
    for metrics, weights in found[1:]:
        for name in ("loss", "reward/mean", "reward/std", "kl", "entropy", "explained_variance"):
            assert metrics[name] == pytest.approx(found[0][0][name], rel=1e-3, abs=1e-5), name
        for name, value in weights.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-3, atol=1e-5, msg=name)


CHANGES = {
    "reward_func": lambda prompts, completions, **columns: [float(i) for i in range(len(prompts))],
    "reward_weights": [-2.0],
    "ppo_epsilon": 0.001,
    "ppo_epochs": 3,
    "alpha": 5.0,
    "beta": 5.0,
    "gamma": 0.5,
    "discount": 0.5,
    "gae_lambda": 0.0,
    "value_clip": None,
    "whiten_advantages": False,
    "reward_placement": "every",
    "missing_eos_penalty": 2.0,
    "bootstrap_truncated": True,
    "kl_coef": 5.0,
    "kl_estimator": "k3",
    "kl_target": 0.001,
    "max_completion_length": 5,
    "temperature": 0.5,
    "top_p": 0.3,
    "top_k": 5,
    "min_p": 0.9,
    "repetition_penalty": 5.0,
    "importance_sampling_cap": 0.5,
    "num_generations": 2,
    "critic_warmup_steps": 1,
    "importance_sampling_floor": 1.5,
    "importance_sampling_mode": "sequence_truncate",
}
# The weights: below, with the encoder. The rest says where and how fast, not what, to sample.
ELSEWHERE = {"weight_for_cos_and_jaccard", "sampling_batch_size", "use_vllm", "vllm_mode"}
ELSEWHERE |= {"reward_timeout", "reward_retries"}  # of a function that fails
ELSEWHERE |= {field.name for field in dataclasses.fields(EpisodeOptions)}  # tests/test_tools.py
ELSEWHERE |= {"vllm_server_base_url", "vllm_server_timeout", "vllm_gpu_memory_utilization"}


def test_every_option_changes_the_result(tiny_model_path):
    own = {f.name for f in dataclasses.fields(PPOOptions)}
    own -= {f.name for f in dataclasses.fields(LoopOptions)}
    assert set(CHANGES) | ELSEWHERE == own
    trainer = make_trainer(tiny_model_path, rows=8)
    # Some completions have to end: a penalty of all of them alike is no difference to learn from.
    trainer.causal_lm.generation_config.eos_token_id = [*range(0, len(trainer.tokenizer), 12)]
    disturb(trainer)
    start = copy.deepcopy(trainer.model.state_dict())

    def run(**change):
        trainer.model.load_state_dict(start)
        list(trainer(**QUICK | {"max_grad_norm": 0.05} | change))
        return torch.cat([value.flatten() for value in trained(trainer).values()])

    baseline = run()
    assert torch.equal(baseline, run())
    same = [name for name, value in CHANGES.items() if torch.equal(baseline, run(**{name: value}))]
    assert not same


def test_every_option_of_the_constructor_changes_the_result(tiny_model_path, encoder_path):
    first = make_trainer(tiny_model_path)
    disturb(first)
    first.model.save_critic(Path("."))
    first.save(Path("start"))

    def run(options=QUICK, **change):
        trainer = make_trainer(tiny_model_path, **change)
        list(trainer(**options))
        return {n: v for n, v in trained(trainer).items() if ".critic." not in n}

    without = {name: value for name, value in QUICK.items() if name != "reward_func"}
    runs = [
        run(),
        run(ratio_for_rlhf=-1.0),
        run(critic="head"),
        run(critic="adapter"),
        run(critic_resume_path="."),
        run(actor_resume_path="start"),
        run(lora_dropout=0.5),
        run(reward_from_pretrained=encoder_path),
        run(without, reward_from_pretrained=encoder_path),
        run(without | {"weight_for_cos_and_jaccard": [1, 0]}, reward_from_pretrained=encoder_path),
    ]
    for i, one in enumerate(runs):
        for other in runs[:i]:
            assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_adapters_dropout_is_off_unless_asked_for(tiny_model_path):
    first = make_trainer(tiny_model_path, lora_dropout=0.4)
    first.save(Path("start"))

    def rates(trainer):
        return {m.p for m in trainer.policy.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates(first) == {0.4}
    assert rates(make_trainer(tiny_model_path, actor_resume_path="start")) == {0.0}
    again = make_trainer(tiny_model_path, actor_resume_path="start", lora_dropout=0.1)
    assert rates(again) == {0.1}


def test_the_critic_is_saved_beside_the_checkpoint_and_taken_back(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    result = list(trainer(**QUICK | {"save_strategy": "epoch", "eval_strategy": "epoch"}))[-1]
    assert result.checkpoint == Path("save_model/demo/Llama_4")
    critic = Path("save_model/demo/Critic_4")
    again = make_trainer(
        tiny_model_path, actor_resume_path=result.checkpoint, critic_resume_path=critic
    )
    assert torch.equal(again.model.value_head.weight, trainer.model.value_head.weight)
    with pytest.raises(ModelError, match="kind of critic"):
        make_trainer(tiny_model_path, critic="adapter", critic_resume_path=critic)
    with pytest.raises(MissingFileError, match="Critic_<step>"):
        make_trainer(tiny_model_path, critic_resume_path="nowhere")


def test_evaluation_is_greedy_and_leaves_training_alone(tiny_model_path):
    found = []
    for strategy in ("no", "epoch"):
        trainer = make_trainer(tiny_model_path)
        results = list(trainer(**QUICK | {"num_epochs": 2, "eval_strategy": strategy}))
        found.append(trained(trainer))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    evaluation = results[-1].eval
    assert evaluation["completion_length"] == 6 and evaluation["ended"] == 0
    assert evaluation["rewards/spread/mean"] == evaluation["reward/mean"]
    text = Path("data_record/demo/samples_2.md").read_text(encoding="utf-8")
    assert text.count("\n") == 2 + 4 and "| prompt | completion | spread | reward | adv" in text


def test_rows_of_the_dpo_loader_are_the_same_rows(tiny_model_path):
    one, two = (make_trainer(tiny_model_path, loader_name=name) for name in ("LLM_RLHF", "LLM_DPO"))
    assert [one.train_data[i] for i in range(8)] == [two.train_data[i] for i in range(8)]


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_reward_model_is_recognised_by_its_checkpoint(tiny_model_path, outputs):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        **{"num_labels": outputs},
    )  # fmt: skip
    model = LlamaForSequenceClassification(config)
    model.save_pretrained("judge")
    tokenizer.save_pretrained("judge")
    if outputs == 2:
        with pytest.raises(ConfigError, match=r"has 2 outputs; a reward model has one"):
            make_trainer(tiny_model_path, reward_from_pretrained="judge")
        return
    trainer = started(
        make_trainer(tiny_model_path, reward_from_pretrained="judge"), reward_func=None
    )
    sample = samples_of(first_update(trainer, 4))[2]
    answer = tokenizer.decode(sample.ids, skip_special_tokens=True)
    messages = [*json.loads(sample.row["prompt"]), {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        expected = float(model.eval()(input_ids=ids).logits[0, 0])
    assert sample.reward == pytest.approx(expected, abs=1e-5)


def test_reward_functions_find_the_gold_answers_under_both_names(tiny_model_path):
    seen: dict[str, Any] = {}

    def look(prompts, answer, gold_answers, bad_answers, level, **columns) -> list[float | None]:
        seen.update(answer=answer, gold=gold_answers, bad=bad_answers)
        return reward_exact([gold[-1] for gold in gold_answers], answer)

    trainer = started(make_trainer(tiny_model_path), reward_func=look)
    samples = samples_of(first_update(trainer, 4))
    assert [sample.reward for sample in samples] == [1.0] * 4
    assert seen["answer"] == seen["gold"] and seen["bad"][0] != seen["gold"][0]


def test_reward_functions_know_the_step_and_what_they_log_is_recorded(tiny_model_path):
    steps: list[tuple[int, int]] = []

    def noting(completions, trainer_state, log_metric, log_extra, **columns):
        steps.append((trainer_state.global_step, trainer_state.max_steps))
        log_metric("two", 2)
        log_extra("characters", [len(c[-1]["content"]) for c in completions])
        return [0.5] * len(completions)

    trainer = make_trainer(tiny_model_path)
    (result,) = trainer(
        **QUICK | {"reward_func": noting, "ppo_epochs": 3, "eval_strategy": "epoch"}
    )
    assert steps == [(0, 6), (3, 6), (6, 6)]  # two draws, one batch to evaluate
    assert result.train["logged/two"] == result.eval["logged/two"] == 2
    lines = Path("data_record/demo/samples_1.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| prompt | completion | noting | reward | advantage | characters |"
    assert all(re.search(r"\| 0.5 \| 0.5 \| [-.\d]+ \| \d+ \|$", line) for line in lines[2:])


# -- what is refused


def failing(prompts, completions, level, **columns):
    if 2 in level:
        raise ZeroDivisionError("no such answer")
    return [0.0] * len(prompts)


def test_a_raising_reward_function_is_named_with_its_rows(tiny_model_path):
    trainer = make_trainer(tiny_model_path)
    with pytest.raises(RewardError, match=r"'failing' raised ZeroDivisionError.*rows \[.*3.*\]"):
        list(trainer(**QUICK | {"reward_func": [spread, failing]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_for_cos_and_jaccard": [0.5, 0.6]}, r"sum to 1, not to 1.1"),
        ({"ppo_epochs": 0}, "ppo_epochs=0 must be 1 or more"),
        ({"ppo_epsilon": 0.0}, "ppo_epsilon=0.0 must be above 0"),
        ({"gae_lambda": 1.5}, "gae_lambda=1.5 must be from 0 to 1"),
        ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_target needs a kl_coef above 0"),
        ({"reward_placement": "first"}, "must be one of 'last', 'every'"),
        ({"reward_func": None}, "PPO needs a reward"),
        ({"reward_func": "spread"}, "not a function"),
        ({"reward_weights": [1.0, 2.0]}, "2 entries for 1 reward functions"),
        ({"max_completion_length": 2000}, "exceeds the model's context of 1024"),
        ({"ppo_epsilonn": 0.1}, "Did you mean 'ppo_epsilon'"),
    ],
)
def test_a_bad_argument_is_refused_at_the_call(tiny_model_path, change, message):
    trainer = make_trainer(tiny_model_path)
    with pytest.raises(ConfigError, match=message):
        trainer(**QUICK | change)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"critic": "adapter", "gradient_checkpointing": True}, ConfigError, "excludes"),
        ({"critic": "heads"}, ConfigError, "must be one of 'head', 'detached', 'adapter'"),
        ({"reward_from_pretrained": "no/such/encoder/here"}, MissingFileError, "no/such/encoder"),
        ({"loader_name": "LLM_Chat"}, ConfigError, "does not fit this trainer"),
    ],
)
def test_a_bad_constructor_argument_is_refused(tiny_model_path, change, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tiny_model_path, **change)


# -- learning


def test_online_training_finds_what_is_rewarded(tiny_model_path):
    """At temperature 0.07 the random model is sure enough to have something to unlearn.

    Of any tokens half lie on the liked side: a policy that only forgot its start stays at 0.5.
    """
    trainer = make_trainer(tiny_model_path, rows=16, batch_size=16)
    liked = trainer.causal_lm.get_input_embeddings().weight[:, 0] > 0

    def one_side(completion_ids, **columns):
        return [float(liked[ids].float().mean()) for ids in completion_ids]

    options = {"reward_func": one_side, "num_epochs": 18, "lr_scheduler_type": "constant"}
    options |= {"lr": 1e-3, "temperature": 0.07, "kl_coef": 0.01}
    saving = {"save_strategy": "epoch", "save_total_limit": 1}
    found = list(trainer(**QUICK | options | saving))
    rewards = [result.train["reward/mean"] for result in found]
    assert rewards[0] < 0.2 and sum(rewards[-6:]) / 6 > 0.7, rewards
    task = started(trainer, **options)
    progress = next((Path(str(found[-1].checkpoint)) / "trainer_state").glob("*.json"))
    running = json.loads(progress.read_text(encoding="utf-8"))["task"]
    samples = []
    for draw in range(6):
        task.load_state(running, {})  # the scores' mean and spread at the end of training
        samples += samples_of(next(iter(task.updates(drawn(task, 16), draw))))
    values = torch.cat([sample.old_values for sample in samples])
    returns = torch.cat([sample.returns for sample in samples])
    error, of_zero = (returns - values).square().mean(), returns.square().mean()
    assert error < 0.8 * of_zero  # measured 0.37; a critic that learnt nothing has 1


def test_offline_training_makes_gold_answers_likelier(tiny_model_path):
    trainer = make_trainer(tiny_model_path, batch_size=8, ratio_for_rlhf=-1.0)
    options = {"reward_func": lambda prompts, **columns: [1.0] * len(prompts), "num_epochs": 12}
    options |= {"lr": 3e-3, "lr_scheduler_type": "constant"}

    def gold_logprob():
        samples = samples_of(first_update(started(trainer, **options), 8))
        return sum(float(s.old_logprobs.sum()) for s in samples) / sum(len(s.ids) for s in samples)

    run = trainer(**QUICK | options)
    before = gold_logprob()
    list(run)
    assert gold_logprob() > before + 0.5  # nats a token


def test_alpha_and_beta_are_the_rates_of_policy_and_critic_where_they_share_no_weights(
    tiny_model_path,
):
    def rates(critic: str) -> dict[str, float]:
        trainer = make_trainer(tiny_model_path, critic=critic)
        task = trainer.task(**QUICK, alpha=0.25, beta=2.0)
        optimizer = make_optimizer(task.model, task.options, task.rate)
        lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        named = task.model.named_parameters()
        return {n: lr[id(p)] / task.options.lr for n, p in named if p.requires_grad}

    for critic in ("detached", "adapter"):
        found = rates(critic)
        own = {n for n in found if "value_head" in n or ".critic." in n}
        assert len(own) == (2 if critic == "detached" else len(found) // 2 + 1)
        assert {found[n] for n in own} == {2.0}
        assert {found[n] for n in found.keys() - own} == {0.25}
    assert set(rates("head").values()) == {1.0}


def test_while_the_critic_warms_up_the_policy_stays(tiny_model_path):
    trainer = make_trainer(tiny_model_path, rows=8)
    before = trained(trainer)
    list(trainer(**QUICK | {"critic_warmup_steps": 4}))  # two draws of two updates
    after = trained(trainer)
    assert all(torch.equal(before[n], after[n]) for n in before if "value_head" not in n)
    assert not torch.equal(before["value_head.weight"], after["value_head.weight"])
    list(trainer(**QUICK | {"critic_warmup_steps": 3}))
    again = trained(trainer)
    assert any(not torch.equal(again[n], after[n]) for n in after if "lora_B" in n)


def test_a_prompt_is_answered_as_often_as_asked_for_and_differently(tiny_model_path):
    seen: list[tuple] = []

    def watching(level, completion_ids, **columns):
        seen.extend(zip(level, map(tuple, completion_ids), strict=True))
        return [float(len(ids)) for ids in completion_ids]

    trainer = make_trainer(tiny_model_path, rows=8)
    (result,) = trainer(**QUICK | {"num_generations": 2, "reward_func": watching})
    assert result.step == 8  # four draws of 2 prompts, two updates each
    assert sorted(level for level, _ in seen) == sorted([*range(8)] * 2)
    assert len(set(seen)) > 14


@pytest.mark.parametrize(
    ("setup", "options", "said"),
    [
        ({}, {"num_generations": 3}, r"does not divide the 4 completions .* \(batch_size=4 x 1"),
        ({"critic": "head"}, {"critic_warmup_steps": 2}, "does not go with critic='head'"),
    ],
)
def test_groups_and_warm_ups_that_cannot_be_are_refused(tiny_model_path, setup, options, said):
    with pytest.raises(ConfigError, match=said):
        make_trainer(tiny_model_path, **setup)(**QUICK | options)
