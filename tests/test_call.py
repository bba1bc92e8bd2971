"""What a call asks for and cannot have is refused at the call, before anything is trained."""

import dataclasses
import math
import typing
from typing import Any

import four_trainers
import pytest
from tiny_task import TinyTask, make_rows

from main.errors import ConfigError
from main.options import parse
from main.trainer.arguments import LoopOptions, SetupOptions
from main.trainer.dpo.options import PreferenceOptions, PreferenceSetup
from main.trainer.grpo.options import GRPOOptions, GRPOSetup
from main.trainer.ppo.options import PPOOptions, PPOSetup

CLASSES = [
    SetupOptions, PreferenceSetup, GRPOSetup, PPOSetup,
    LoopOptions, PreferenceOptions, GRPOOptions, PPOOptions,
]  # fmt: skip
NEEDED = {"from_pretrained": "m", "data_path": "d", "reward_func": len}


def numbers(kind: Any) -> list[str]:
    """The options that may be fractions."""
    hints = typing.get_type_hints(kind)
    of_class = {field.name: hints[field.name] for field in dataclasses.fields(kind)}
    return [n for n, hint in of_class.items() if float in (hint, *typing.get_args(hint))]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_option_is_not_a_number_or_infinite(kind):
    fields = {field.name for field in dataclasses.fields(kind)}
    needed = {name: value for name, value in NEEDED.items() if name in fields}
    assert numbers(kind)
    for name in numbers(kind):
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ConfigError, match=f"{name}={value} must be finite"):
                parse(kind, needed | {name: value}, "here()")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed=-1 must be from 0"),
        ({"seed": 2**32}, "seed=4294967296 must be from 0"),
        ({"lora_alpha": 0}, "lora_alpha=0 must be > 0"),
    ],
)
def test_numbers_of_a_constructor_have_bounds(given, message):
    with pytest.raises(ConfigError, match=message):
        parse(SetupOptions, NEEDED_OF_SETUP | given, "here()")


NEEDED_OF_SETUP = {"from_pretrained": "m", "data_path": "d"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vllm_gpu_memory_utilization": 1.5}, "vllm_gpu_memory_utilization=1.5 must be above 0"),
        ({"vllm_server_timeout": 0}, "vllm_server_timeout=0 must be above 0"),
        ({"sampling_batch_size": 0}, "sampling_batch_size=0 must be 1 or more"),
        ({"temperature": 0}, "temperature=0 must be > 0"),
    ],
)
def test_numbers_of_drawing_have_bounds(given, message):
    vllm: dict[str, Any] = {"use_vllm": True} if "vllm_server_timeout" in given else {}
    vllm |= {"use_vllm": True, "vllm_mode": "colocate"} if "vllm_gpu" in next(iter(given)) else {}
    with pytest.raises(ConfigError, match=message):
        parse(PPOOptions, given | vllm, "here()")


def test_a_metric_that_no_evaluation_has_is_refused_before_the_first_step(tmp_path):
    class Known(TinyTask):
        def evaluated_names(self):
            return ["loss", "logged/*"]

    rows = make_rows(2)
    with pytest.raises(ConfigError, match=r"'los' is not evaluated; .*Did you mean 'loss'"):
        Known(rows, rows).start(tmp_path, metric_for_best_model="los")
    for name in ("eval_loss", "logged/x"):
        Known(rows, rows).start(tmp_path, metric_for_best_model=name)
    Known(rows, None).start(tmp_path, metric_for_best_model="los")  # nothing is evaluated


@pytest.mark.parametrize("method", four_trainers.METHODS)
def test_what_a_method_says_it_evaluates_is_what_it_evaluates(own_folder, tiny_model_path, method):
    four_trainers.write_data(own_folder, 2, 2)
    trainer = four_trainers.make_trainer(method, tiny_model_path, max_length=64)
    with pytest.raises(ConfigError, match=r"metric_for_best_model='bleu' is not evaluated; there"):
        four_trainers.run(trainer, method, metric_for_best_model="bleu")
    (result,) = four_trainers.run(trainer, method, max_steps=1, num_epochs=1, save_strategy="no")
    options = four_trainers.METHODS[method] | {"report_to": "none"}
    reward = {"reward_func": four_trainers.letters} if method in ("ppo", "grpo") else {}
    task = trainer.task(**options, **reward)
    assert set(task.evaluated_names()) - {"logged/*"} == set(result.eval)
