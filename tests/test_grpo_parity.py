"""Loss and adapter gradients against TRL's GRPOTrainer on the same completions, every variant."""

import copy
import warnings

import pytest
import torch
from datasets import Dataset
from test_grpo import make_trainer, own_folder, run
from torch.nn.utils.rnn import pad_sequence

from main.trainer.rollout import Completion
from main.trainer.samples import SAMPLE, Sample

__all__ = ["own_folder"]  # a fixture
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
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
            processing_class=ours.tokenizer,
        )
    theirs.current_gradient_accumulation_steps = 1
    theirs.model.train()
    return ours, theirs


def samples(rows: list[dict]) -> list[dict]:
    """Two prompts with two completions each, at some distance from the old policy."""
    generator = torch.Generator().manual_seed(3)

    def noise(size: int) -> torch.Tensor:
        return -10.8 + 0.5 * torch.randn(size, generator=generator)

    found = []
    for i, length in enumerate(LENGTHS):
        ids = torch.randint(5, 49000, (length,), generator=generator).tolist()
        sample = Sample(Completion(ids, noise(length).tolist(), ended=True), "")
        sample.advantage = ADVANTAGES[i]
        sample.old_logprobs, sample.ref_logprobs = noise(length), noise(length)
        found.append({**rows[i // 2], "sample": i % 2, SAMPLE: sample})
    return found


def theirs_of(rows: list[dict], cap: float | None) -> dict[str, torch.Tensor]:
    """What TRL prepares of the same: prompts padded left, completions right."""
    prompts = [torch.tensor(row["prompt_ids"]) for row in rows]
    completions = [torch.tensor(row[SAMPLE].completion.ids) for row in rows]

    def right(values):
        return pad_sequence(list(values), batch_first=True)

    def left(values):
        return pad_sequence([v.flip(0) for v in values], batch_first=True).flip(1)

    old = right(row[SAMPLE].old_logprobs for row in rows)
    inputs = {
        "prompt_ids": left(prompts),
        "prompt_mask": left([torch.ones_like(p) for p in prompts]),
        "completion_ids": right(completions),
        "completion_mask": right(torch.ones_like(c) for c in completions),
        "advantages": torch.tensor([row[SAMPLE].advantage for row in rows]),
        "num_items_in_batch": torch.tensor(sum(LENGTHS)),
        "old_per_token_logps": old,
        "ref_per_token_logps": right(row[SAMPLE].ref_logprobs for row in rows),
    }
    if cap is not None:
        sampling = right(torch.tensor(row[SAMPLE].completion.sampling_logprobs) for row in rows)
        inputs["importance_sampling_ratio"] = (old - sampling).exp().clamp(max=cap)
    return inputs


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {
        name.removeprefix("model."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad(set_to_none=True)
    return found


def compare(pair, **options) -> None:
    ours, theirs = pair
    cap = options.setdefault("importance_sampling_cap", None)
    base = {"temperature": 0.9, "max_completion_length": 12, "num_iterations": 2}
    run(ours, **(base | options))
    kind = options["loss_type"]
    theirs.importance_sampling_level = "sequence" if kind in ("gspo", "luspo") else "token"
    theirs.loss_type = "grpo" if kind == "gspo" else kind
    theirs.beta = options.get("beta", 0.0)
    theirs.epsilon_low = options.get("epsilon", 0.2)
    theirs.epsilon_high = options.get("epsilon_high", theirs.epsilon_low)
    theirs.use_vllm = theirs.vllm_importance_sampling_correction = cap is not None
    rows = samples([ours.train_data[0], ours.train_data[1]])
    expected = theirs._compute_loss(theirs.model, theirs_of(rows, cap))
    expected.backward()
    wanted = gradients(theirs.model)
    batch = ours.collate(rows)
    assert ("position_ids" in batch.tensors) == ours.share
    loss, metrics = ours.loss(batch.tensors, batch.counts)
    loss.backward()
    found = gradients(ours.model)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    clipped = theirs._metrics["train"]
    if kind in ("grpo", "bnpo", "dr_grpo", "dapo"):
        share = float(metrics["clip_fraction"][0]) / metrics["clip_fraction"][1]
        assert share == pytest.approx(clipped["clip_ratio/region_mean"][-1], abs=1e-6)
    entropy = float(metrics["entropy"][0]) / metrics["entropy"][1]
    assert entropy == pytest.approx(clipped["entropy"][-1], rel=1e-5)
    assert {name.removeprefix("model.") for name in wanted} == set(found) or set(wanted) == set(
        found
    )
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            found[name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


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


def test_without_the_shared_prompt_they_are_the_same(pair):
    ours, _ = pair
    ours.share = False
    try:
        compare(pair, loss_type="dapo", beta=0.2)
    finally:
        ours.share = True


def test_the_first_updates_ratio_is_exactly_one(pair):
    ours, _ = pair
    run(ours, num_iterations=2, loss_type="grpo", importance_sampling_cap=None)
    rows = samples([ours.train_data[0], ours.train_data[1]])
    for row in rows:
        row[SAMPLE].old_logprobs = None
    first = ours.loss(*call(ours, rows))
    # -A of each sequence, exactly, as every token's ratio is 1
    assert first.loss.item() == pytest.approx(-sum(ADVANTAGES) / 4, abs=1e-7)
    assert float(first.metrics["clip_fraction"][0]) == 0
    again = ours.loss(*call(ours, rows))  # the same policy, now against what the first one stored
    assert again.loss.item() == first.loss.item()
    first.loss.backward()
    expected = gradients(ours.model)
    again.loss.backward()
    for name, gradient in gradients(ours.model).items():
        assert torch.equal(gradient, expected[name]), name


def call(trainer, rows):
    batch = trainer.collate(rows)
    return batch.tensors, batch.counts
