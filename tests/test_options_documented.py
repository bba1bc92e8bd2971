"""Every option says what it does, where `help()` shows it."""

import dataclasses
import importlib
import pydoc
import re

import pytest
from options_classes import options_classes

HELP = pydoc._PlainTextDoc()  # type: ignore[attr-defined]  # help() without bold letters
TRAINERS = ["lora", "dpo", "ppo", "grpo"]


def undocumented(kind: type, text: str) -> list[str]:
    names = [field.name for field in dataclasses.fields(kind)]
    return [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_every_option_is_documented_by_its_class_or_a_base_of_it():
    kinds = options_classes()
    assert len(kinds) > 12
    for kind in kinds:
        bases = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
        text = "\n".join(base.__doc__ or "" for base in bases)
        assert not undocumented(kind, text), kind


@pytest.mark.parametrize("method", TRAINERS)
def test_help_shows_every_option_of_a_trainer_with_its_default_and_its_meaning(method):
    trainer = importlib.import_module(f"main.trainer.{method}").Trainer
    for function, options in (
        (trainer.__init__, trainer.setup_class),
        (trainer.__call__, trainer.loop_class),
    ):
        signature, *lines = HELP.document(function).splitlines()
        text = "\n".join(lines)
        assert not undocumented(options, signature), function
        assert not undocumented(options, text), function
    assert "lora_r: int = 16" in HELP.document(trainer.__init__)
    assert "rank, scale" in HELP.document(trainer.__init__)


def test_what_a_call_yields_stands_before_its_options():
    from main.trainer.lora import Trainer

    text = HELP.document(Trainer.__call__)
    assert text.index("yields an EpochResult") < text.index("gradient_accumulation_steps: micro")
