"""Loss and adapter gradients against TRL's GRPOTrainer on the same completions, every variant."""

import copy
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset
from gradients import gradient
from tiny_grpo import RUN, make_trainer
from torch.nn.utils.rnn import pad_sequence

from main.trainer.grpo.credit import Judged, credit_of
from main.trainer.grpo.entropy import note_forks
from main.trainer.online.policy_loss import VESPO
from main.trainer.online.sample import Prompt, Sample

pytestmark = pytest.mark.usefixtures("own_folder")
LENGTHS = (5, 9, 2, 7)
ADVANTAGES = (1.0, -0.7, 0.4, -1.3)


@pytest.fixture(scope="module")
def pair(tiny_model_path, tmp_path_factory):
    """Our trainer and TRL's, with the same adapter, moved away from its start."""
    from trl import GRPOConfig, GRPOTrainer

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("parity"))
        ours = make_trainer(tiny_model_path)
    for name, parameter in ours.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    config = GRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        report_to="none",
        use_cpu=True,
        bf16=False,
        temperature=0.9,
        gradient_checkpointing=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = GRPOTrainer(
            model=copy.deepcopy(ours.policy),
            reward_funcs=lambda completions, **_: [0.0] * len(completions),  # type: ignore[arg-type]
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
            processing_class=ours.tokenizer,
        )
    theirs.current_gradient_accumulation_steps = 1
    assert theirs.model is not None
    theirs.model.train()
    return ours, theirs


def samples(rows: list[dict]) -> list[Sample]:
    """Two prompts with two completions each, at some distance from the old policy."""
    generator = torch.Generator().manual_seed(3)

    def noise(size: int) -> torch.Tensor:
        return -10.8 + 0.5 * torch.randn(size, generator=generator)

    found = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(5, 49000, (length,), generator=generator).tolist()
        prompt, logprobs = Prompt(rows[i // 2], i % 2), noise(length)
        sample = Sample(prompt, ids, ended=True, sampling_logprobs=logprobs)
        sample.advantages = torch.full((length,), ADVANTAGES[i])
        sample.old_logprobs, sample.ref_logprobs = noise(length), noise(length)
        found.append(sample)
    return found


def theirs_of(drawn: list[Sample], ratio: Any = None) -> dict[str, torch.Tensor]:
    """What TRL prepares of the same: prompts padded left, completions right."""
    prompts = [torch.tensor(sample.prompt.ids) for sample in drawn]
    completions = [torch.tensor(sample.ids) for sample in drawn]

    def right(values):
        return pad_sequence(list(values), batch_first=True)

    def left(values):
        return pad_sequence([v.flip(0) for v in values], batch_first=True).flip(1)

    old = right(sample.old_logprobs for sample in drawn)
    inputs = {
        "prompt_ids": left(prompts),
        "prompt_mask": left([torch.ones_like(p) for p in prompts]),
        "completion_ids": right(completions),
        "completion_mask": right(torch.ones_like(c) for c in completions),
        "advantages": torch.tensor([float(sample.advantages[0]) for sample in drawn]),
        "num_items_in_batch": torch.tensor(sum(LENGTHS)),
        "old_per_token_logps": old,
        "ref_per_token_logps": right(sample.ref_logprobs for sample in drawn),
    }
    sampling = right(sample.sampling_logprobs for sample in drawn)
    inputs["sampling_per_token_logps"] = sampling
    if ratio is not None:
        inputs["importance_sampling_ratio"] = ratio(old - sampling)
    return inputs


def bounded(difference: torch.Tensor, mode: str, low: float | None, high: float) -> torch.Tensor:
    """The sampler's correction (B, T) or (B, 1) as TRL documents its four modes."""
    if mode.startswith("sequence"):
        difference = difference.sum(1, keepdim=True)
    ratio = difference.exp()
    if mode.endswith("truncate"):
        return ratio.clamp(min=low, max=high)
    return torch.where((ratio >= (low or 0.0)) & (ratio <= high), ratio, 0.0)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {
        name.removeprefix("model."): gradient(parameter).clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return found


def compare(pair, **options) -> None:
    ours, theirs = pair
    cap = options.setdefault("importance_sampling_cap", None)
    base = {"temperature": 0.9, "max_completion_length": 12, "num_iterations": 2}
    task = ours.task(**(RUN | base | options))
    o, kind = task.options, options["loss_type"]
    theirs.importance_sampling_level = o.level
    theirs.loss_type = "grpo" if kind == "gspo" else kind
    theirs.beta, theirs.epsilon_low = o.beta, o.epsilon
    theirs.epsilon_high = options.get("epsilon_high", theirs.epsilon_low)
    theirs.args.delta, theirs.off_policy_mask_threshold = o.delta, o.off_policy_mask_threshold
    theirs.top_entropy_quantile, theirs.entropy_coef = o.top_entropy_quantile, o.entropy_coef
    theirs._entropy_bonus_enabled = o.entropy_coef > 0
    for name in VESPO:
        setattr(theirs.args, name, getattr(o, name))
    theirs.use_vllm = theirs.vllm_importance_sampling_correction = cap is not None
    rows = samples([ours.train_data[0], ours.train_data[1]])
    if o.top_entropy_quantile < 1:
        kept = [sample.old_logprobs for sample in rows]
        task._score(rows)
        for sample, old in zip(rows, kept, strict=True):
            sample.old_logprobs = old
        note_forks(rows, rows, o.top_entropy_quantile)
    mode, floor = o.importance_sampling_mode, o.importance_sampling_floor
    ratio = (lambda apart: bounded(apart, mode, floor, cap)) if cap is not None else None
    expected = theirs._compute_loss(theirs.model, theirs_of(rows, ratio))
    expected.backward()
    wanted = gradients(theirs.model)
    batch = task.collate(rows)
    assert (batch.tensors.position_ids is not None) == task.shares_prompts
    loss, metrics = task.loss(batch.tensors, batch.counts)
    loss.backward()
    found = gradients(ours.model)
    # The power of a whole sequence's ratio multiplies the rounding of its log-probabilities.
    tolerance = 5e-5 if kind == "vespo" else 1e-5
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    clipped = theirs._metrics["train"]
    if kind in ("grpo", "bnpo", "dr_grpo", "dapo") and o.delta is None and o.level == "token":
        share = float(metrics["clip_fraction"][0]) / metrics["clip_fraction"][1]
        assert share == pytest.approx(clipped["clip_ratio/region_mean"][-1], abs=1e-6)
    entropy = float(metrics["entropy"][0]) / metrics["entropy"][1]
    assert entropy == pytest.approx(clipped["entropy"][-1], rel=1e-5)
    assert {name.removeprefix("model.") for name in wanted} == set(found) or set(wanted) == set(
        found
    )
    for name, right in wanted.items():
        scale = float(right.abs().max())
        torch.testing.assert_close(found[name], right, rtol=1e-4, atol=1e-5 * scale, msg=name)


VARIANTS = ("grpo", "dr_grpo", "dapo", "bnpo", "gspo", "luspo", "cispo", "sapo", "vespo")


def clip_of(loss_type: str) -> dict[str, float]:
    if loss_type in ("sapo", "vespo"):
        return {}
    return {"epsilon_high": 1.2 if loss_type == "cispo" else 0.28}


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_loss_and_gradients_equal_trls(pair, loss_type):
    extra = clip_of(loss_type)
    compare(pair, loss_type=loss_type, **extra)


@pytest.mark.parametrize("loss_type", VARIANTS)
def test_they_equal_trls_with_divergence_and_correction_of_the_sampler(pair, loss_type):
    extra = clip_of(loss_type)
    compare(pair, loss_type=loss_type, beta=0.2, importance_sampling_cap=1.3, **extra)


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "grpo", "delta": 1.5},
        {"loss_type": "gspo", "delta": 1.21},
        {"loss_type": "dapo", "importance_sampling_level": "sequence"},
        {"loss_type": "luspo", "importance_sampling_level": "token", "delta": 1.5},
        {"loss_type": "cispo", "importance_sampling_level": "sequence", "epsilon_high": 1.2},
        {"loss_type": "dapo", "off_policy_mask_threshold": 0.02, "beta": 0.2},
        {"loss_type": "gspo", "off_policy_mask_threshold": 0.0},
        {"loss_type": "dapo", "top_entropy_quantile": 0.3, "beta": 0.2},
        {"loss_type": "grpo", "top_entropy_quantile": 0.5, "importance_sampling_cap": 1.3},
        {"loss_type": "luspo", "top_entropy_quantile": 0.5},
        {"loss_type": "grpo", "entropy_coef": 0.3},
        {"loss_type": "dr_grpo", "entropy_coef": 0.3, "top_entropy_quantile": 0.4},
        {"loss_type": "vespo", "vespo_k_pos": 1.0, "vespo_lambda_neg": 3.0},
        {"loss_type": "vespo", "vespo_k_neg": 2.0, "vespo_lambda_pos": 2.0},
    ],
    ids=str,
)
def test_they_equal_trls_with_every_other_option(pair, options):
    compare(pair, **options)


@pytest.mark.parametrize("loss_type", ["dapo", "gspo", "vespo"])
@pytest.mark.parametrize("floor", [None, 0.8])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("bound", ["truncate", "mask"])
def test_they_equal_trls_in_every_mode_of_correction(pair, loss_type, floor, level, bound):
    mode = {"vllm_importance_sampling_mode": f"{level}_{bound}"}
    limits = {"importance_sampling_cap": 1.3, "vllm_importance_sampling_clip_min": floor}
    compare(pair, loss_type=loss_type, **mode, **limits)


def test_without_the_shared_prompt_they_are_the_same(pair):
    ours, _ = pair
    ours.shares_prompts = False
    try:
        compare(pair, loss_type="dapo", beta=0.2)
    finally:
        ours.shares_prompts = True


def test_the_first_updates_ratio_is_exactly_one(pair):
    ours, _ = pair
    options = {"num_iterations": 2, "loss_type": "grpo", "importance_sampling_cap": None}
    task = ours.task(**(RUN | options))
    rows = samples([ours.train_data[0], ours.train_data[1]])
    for row in rows:
        row.old_logprobs = torch.empty(0)
    first = task.loss(*call(task, rows))
    # -A of each sequence, exactly, as every token's ratio is 1
    assert first.loss.item() == pytest.approx(-sum(ADVANTAGES) / 4, abs=1e-7)
    assert float(first.metrics["clip_fraction"][0]) == 0
    task._score(rows)
    assert all(len(row.old_logprobs) == len(row.ids) for row in rows)
    again = task.loss(*call(task, rows))  # the same policy, now against what was kept of it
    assert again.loss.item() == first.loss.item()
    first.loss.backward()
    expected = gradients(ours.model)
    again.loss.backward()
    for name, found in gradients(ours.model).items():
        assert torch.equal(found, expected[name]), name


def call(trainer, rows):
    batch = trainer.collate(rows)
    return batch.tensors, batch.counts


@pytest.mark.parametrize("kind", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("known", [1.0, float("nan")])
def test_advantages_of_several_rewards_equal_trls(pair, monkeypatch, kind, known):
    """What TRL makes of three rewards of two groups of four, drawn and scored beforehand."""
    ours, theirs = pair
    parts = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    parts[:, 1] *= 20
    parts[4:, 2] = 0.25  # a group without spread
    parts[1, 1] *= known
    weights = [1.0, 0.5, -2.0]
    drawn: tuple = ([[5, 6]] * 8, [[7, 8]] * 8, None, ["c"] * 8, None, {}, None, None)
    monkeypatch.setattr(theirs, "_generate", lambda prompts: drawn)
    monkeypatch.setattr(theirs, "_calculate_rewards", lambda *_: parts.clone())
    monkeypatch.setattr(theirs, "multi_objective_aggregation", kind)
    monkeypatch.setattr(theirs, "reward_weights", torch.tensor(weights))
    monkeypatch.setattr(theirs, "reward_func_names", ["a", "b", "c"])
    monkeypatch.setattr(theirs, "reward_funcs", [abs] * 3)
    expected = theirs._generate_and_score_completions([{"prompt": "q"}] * 8)["advantages"]
    task = ours.task(**(RUN | {"multi_objective_aggregation": kind}))
    sums = (parts * torch.tensor(weights)).nansum(1)
    keys = [(row, number) for row in (1, 2) for number in range(4)]
    judged = Judged(keys, sums.view(2, 4), parts.view(2, 4, 3))
    credit = credit_of(judged, weights, task.options)
    found = torch.tensor([credit[key] for key in keys])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
