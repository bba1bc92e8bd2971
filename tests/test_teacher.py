"""A teacher judges what the policy draws: its credit worked out apart, and what is refused."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_grpo import RUN, adapter, early_tokens, make_trainer, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from main.errors import CheckpointError, ConfigError, ModelError
from main.models import LoraOptions, add_adapter, save_adapter
from main.trainer.grpo.teacher import ModelTeacher
from main.trainer.loop.task import MicroBatch
from main.trainer.loop.task import Run as TaskRun
from main.trainer.online.sample import Prompt

pytestmark = pytest.mark.usefixtures("own_folder")
ALONE = {"reward_func": None}


@pytest.fixture
def teacher(tiny_model_path) -> Path:
    """An adapter that prefers other tokens than the base, of another rank than the policy's."""
    torch.manual_seed(1)
    policy = add_adapter(
        AutoModelForCausalLM.from_pretrained(tiny_model_path), LoraOptions(lora_r=2)
    )
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    save_adapter(policy, "teacher")
    return Path("teacher")


def drawn(trainer, **changes):
    """A task that is open, and the samples of two prompts."""
    task = trainer.task(**RUN | changes)
    task.open(TaskRun(task.model, torch.device("cpu")))
    rows = [trainer.train_data[i] for i in range(2)]
    micro = [MicroBatch([Prompt(row, n) for n in range(4)]) for row in rows]
    (update,) = task.updates(micro, 0)
    return task, [sample for part in update.micro_batches for sample in part.items]


def logprobs(model, sample) -> torch.Tensor:
    """(T,), from plain logits."""
    ids = torch.tensor([[*sample.row["prompt_ids"], *sample.ids]])
    logits = model(input_ids=ids).logits[0, -len(sample.ids) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(sample.ids)[:, None])[:, 0]


@pytest.mark.parametrize("rewarded", [False, True])
def test_the_gradient_is_that_of_the_gap_between_both_models(tiny_model_path, teacher, rewarded):
    trainer = make_trainer(tiny_model_path, teacher_peft_path=teacher)
    changes = {"teacher_weight": 0.7} | ({} if rewarded else ALONE)
    task, samples = drawn(trainer, **changes)
    batch = task.collate(samples)
    task.loss(batch.tensors, batch.counts).loss.backward()
    found = {n: p.grad.clone() for n, p in task.policy.named_parameters() if p.grad is not None}
    task.policy.zero_grad()

    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_model_path), teacher
    )
    total = 0.0
    for sample in samples:
        own = logprobs(task.policy, sample)
        with torch.no_grad():
            credit = 0.7 * (logprobs(theirs, sample) - own)
        total = total - ((credit + sample.advantages) * own).sum()
        assert rewarded == bool(sample.advantages.any())
    (total / batch.counts["tokens"]).backward()
    assert len(found) > 10
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, task.policy.get_parameter(name).grad, rtol=1e-4, atol=1e-7
        )


def test_the_policy_comes_nearer_to_its_teacher_and_no_other_weight_moves(tiny_model_path, teacher):
    trainer = make_trainer(tiny_model_path, 8, teacher_peft_path=teacher)
    frozen = {n: p.clone() for n, p in trainer.policy.named_parameters() if not p.requires_grad}
    results = list(run(trainer, **ALONE, num_epochs=12, eval_strategy="epoch"))
    assert results[-1].eval["teacher/kl"] < 0.5 * results[0].eval["teacher/kl"]
    assert results[-1].train["teacher/kl"] < 0.5 * results[0].train["teacher/kl"]
    for name, before in frozen.items():
        assert torch.equal(trainer.policy.get_parameter(name), before), name


def test_an_adapter_on_the_base_judges_as_a_model_of_its_own(tiny_model_path, teacher):
    trainer = make_trainer(tiny_model_path, teacher_peft_path=teacher)
    _, samples = drawn(trainer, **ALONE)
    apart = ModelTeacher(tiny_model_path, teacher, trainer, 0)
    assert trainer.teacher is not None
    one = trainer.teacher.logprobs(samples, 0.8)
    torch.testing.assert_close(apart.logprobs(samples, 0.8), one, rtol=1e-5, atol=1e-5)
    base = ModelTeacher(tiny_model_path, None, trainer, 0)
    assert (base.logprobs(samples, 0.8) - one).abs().max() > 0.1


def test_a_run_goes_on_with_the_same_teacher_alone(tiny_model_path, teacher):
    saving = {"save_strategy": "steps", "save_steps": 1, **ALONE}
    whole = make_trainer(tiny_model_path, 4, teacher_peft_path=teacher, task_name="whole")
    list(run(whole, **saving))
    part = make_trainer(tiny_model_path, 4, teacher_peft_path=teacher)
    list(run(part, **saving, max_steps=1))
    again = make_trainer(tiny_model_path, 4, teacher_peft_path=teacher)
    list(run(again, **saving, resume_from_checkpoint="auto", num_epochs=1))
    for name, value in adapter(whole).items():
        assert torch.equal(adapter(again)[name], value), name
    other = make_trainer(tiny_model_path, 4, teacher_from_pretrained=tiny_model_path)
    with pytest.raises(CheckpointError, match="teacher"):
        list(run(other, **saving, resume_from_checkpoint="auto", num_epochs=2))


def test_a_teacher_that_speaks_of_other_tokens_is_refused(tiny_model_path, small_model_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    model.save_pretrained("other")
    AutoTokenizer.from_pretrained(small_model_path).save_pretrained("other")
    for file in Path("other").glob("tokenizer*.json"):
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("<file_sep>", "<file_sap>"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"token '<file_sep>' is number \d+ .* and unknown of"):
        make_trainer(tiny_model_path, teacher_from_pretrained="other")


@pytest.mark.parametrize(
    ("setup", "call", "message"),
    [
        ({}, ALONE, "needs 'reward_func', or a teacher"),
        ({}, {"teacher_weight": 2.0}, "teacher_weight=2.0 changes nothing with a trainer without"),
        ({"teacher_peft_path": "teacher"}, {"reward_func": []}, "reward_func is empty"),
        ({"teacher_peft_path": "teacher"}, {"teacher_weight": 0.0}, "teacher_weight=0.0 must be"),
        (
            {"teacher_peft_path": "teacher"},
            {**ALONE, "dynamic_sampling": 2},
            "dynamic_sampling=2 changes nothing with reward_func=None",
        ),
        (
            {"teacher_peft_path": "teacher", "init_lora_weights": "pissa"},
            {},
            "takes its start out of the base weights",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(tiny_model_path, teacher, setup, call, message):
    with pytest.raises(ConfigError, match=message):
        run(make_trainer(tiny_model_path, **setup), **call)


def test_an_adapter_of_another_base_is_no_teacher(tiny_model_path, teacher):
    config = AutoModelForCausalLM.from_pretrained(tiny_model_path).config
    config.hidden_size, config.head_dim = 32, 8
    policy = add_adapter(AutoModelForCausalLM.from_config(config), LoraOptions(lora_r=2))
    save_adapter(policy, "wide")
    with pytest.raises(ModelError, match="adapter 'wide' does not fit"):
        make_trainer(tiny_model_path, teacher_peft_path="wide")


def test_rewards_and_a_teacher_are_told_apart_in_the_records(tiny_model_path, teacher):
    trainer = make_trainer(tiny_model_path, teacher_peft_path=teacher)
    (result,) = run(trainer, reward_func=early_tokens, eval_strategy="epoch")
    assert {"reward/mean", "teacher/kl"} <= set(result.train) & set(result.eval)
