"""Numbers that are not finite, from any source, in any trainer: named with row and step."""

import json
import logging
import math
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import four_trainers
import pytest
import torch

from main.errors import DataError, GenerationError, RewardError, TrainingError
from main.trainer.rollout.sampler import HFSampler

METHODS = list(four_trainers.METHODS)
ONLINE = ("ppo", "grpo")
QUIET: dict[str, Any] = {"save_strategy": "no", "eval_strategy": "no"}


def long(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.long)


@pytest.fixture(autouse=True)
def data(own_folder):
    four_trainers.write_data(own_folder, 8, 2)


def start(trainer: Any, method: str, **options: Any) -> list[Any]:
    return list(four_trainers.run(trainer, method, **(QUIET | options)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_in_a_row_of_a_file(method, number, tiny_model_path):
    path = Path(f"{method}_train.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = f'{lines[2][:-1]}, "weight": {number}}}'
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path.name} line 3: .*{re.escape(number)}"):
        four_trainers.make_trainer(method, tiny_model_path)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [math.nan, long(math.inf)])
def test_in_the_weights_of_a_model(method, number, tiny_model_path):
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    named = dict(trainer.causal_lm.named_parameters())
    name = next(name for name in named if "layers.1" in name and "base_layer.weight" in name)
    named[name].data[0, 0] = number
    if method in ONLINE:
        said = r"after 0 steps, source row \d: the model's logits are not finite"
        with pytest.raises(GenerationError, match=said):
            start(trainer, method)
        return
    with pytest.raises(TrainingError, match=r"step 1 of epoch 1: the gradient norm is nan") as info:
        start(trainer, method)
    assert "Source rows of the step: [" in str(info.value)
    assert re.search(rf"weights are not finite: \[.*{re.escape(name)}", str(info.value))


@pytest.mark.parametrize("method", METHODS)
def test_in_the_scores_of_one_row(method, tiny_model_path):
    """Of the step's rows the one is named."""
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    marked = trainer.tokenizer("5", add_special_tokens=False)["input_ids"][-1]
    spoilt: list[int] = []

    def spoil(module, arguments, inputs, output):
        ids, rows = inputs["input_ids"], inputs["loss_mask"][:, 1:].nonzero()[:, 0]
        hit = (ids == marked).any(1)[rows]
        if not (torch.is_grad_enabled() or spoilt) or not bool(hit.any()):
            return None
        spoilt.append(1)
        return output._replace(logprobs=output.logprobs * torch.where(hit, math.nan, 1.0))

    trainer.model.register_forward_hook(spoil, with_kwargs=True)
    with pytest.raises(
        TrainingError, match=r"step \d of epoch 1: the gradient norm is nan"
    ) as info:
        start(trainer, method)
    rows = json.loads(str(info.value).split("Source rows of the step: ")[1].split(".")[0])
    named = re.search(r"The loss of these is not finite: (\[[\d, ]+\])", str(info.value))
    assert 6 in rows  # the line that begins with "5."
    assert named is None if set(rows) == {6} else json.loads(named[1]) == [6]  # type: ignore[index]


@pytest.mark.parametrize("method", ONLINE)
@pytest.mark.parametrize("number", [math.nan, None, *map(long, (math.inf, 1e39, "1"))])
def test_in_a_reward(method, number, tiny_model_path):
    trainer, calls = four_trainers.make_trainer(method, tiny_model_path), []

    def odd(prompts, completions, **columns):
        calls.append(prompts)
        found = [float(len(str(c))) for c in completions]
        return [*found[:-1], number] if len(calls) == 2 else found

    made = "2" if method == "ppo" else "1"  # updates of the first draw
    with pytest.raises(RewardError, match=rf"after {made} steps: .*row \d"):
        start(trainer, method, reward_func=odd)


# -- signs of trouble, each once


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_that_does_not_move_is_told_once(method, tiny_model_path, caplog):
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    start(trainer, method, lr=0.0, num_epochs=10, max_steps=13)
    assert told(caplog, "no weight of the adapter has moved") == 1


@pytest.mark.parametrize("method", ["lora", "dpo"])
def test_a_loss_that_diverges_is_told_once(method, tiny_model_path, caplog):
    trainer, factor = four_trainers.make_trainer(method, tiny_model_path), [1.0]
    sign = 1 if method == "lora" else -1  # an answer ever less likely; the wrong one ever more

    def worse(module, arguments, output):
        if torch.is_grad_enabled():
            factor[0] *= 1.7
            lengths = torch.arange(len(output.logprobs)) < len(output.logprobs) // 2
            weights = torch.ones(len(lengths)) if sign > 0 else lengths.float() * 100
            return output._replace(logprobs=output.logprobs * (weights * factor[0] + 1))
        return None

    trainer.model.register_forward_hook(worse)
    start(trainer, method, num_epochs=6, lr=1e-4)
    assert told(caplog, "the run diverges") == 1


@pytest.mark.parametrize("method", ONLINE)
def test_lengths_entropy_and_divergence_of_a_policy_are_told_once(
    method, tiny_model_path, monkeypatch, caplog
):
    trainer, draws = four_trainers.make_trainer(method, tiny_model_path), [0]
    sample, active = HFSampler.sample, trainer.reference.active
    far = [False]

    def shorter(self, prompts, seeds, greedy=False, limits=None):
        draws[0] += 1
        found = sample(self, prompts, seeds, greedy, limits)
        return [c._replace(ids=c.ids[:1], sampling_logprobs=c.sampling_logprobs[:1])
                if draws[0] > 1 else c for c in found]  # fmt: skip

    @contextmanager
    def elsewhere():
        with active():
            far[0] = True
            try:
                yield
            finally:
                far[0] = False

    def changed(module, arguments, output):
        if far[0]:
            return output._replace(logprobs=output.logprobs - 3)
        if output.entropy is not None and draws[0] > 1:
            return output._replace(entropy=output.entropy * 0.01)
        return None

    monkeypatch.setattr(HFSampler, "sample", shorter)
    monkeypatch.setattr(trainer.reference, "active", elsewhere)
    trainer.causal_lm.generation_config.eos_token_id = 49_000
    trainer.model.register_forward_hook(changed)
    start(trainer, method, num_epochs=3, lr=1e-5)
    for sign in ("completions went from", "the entropy fell from", "nats a token away from"):
        assert told(caplog, sign) == 1, sign


def told(caplog: Any, text: str) -> int:
    return sum(
        text in record.getMessage()
        for record in caplog.records
        if record.levelno == logging.WARNING
    )
