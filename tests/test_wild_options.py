"""Whatever is given as an option, an error of ours comes out, or options that can be read."""

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wild
from hypothesis import strategies as st
from options_classes import options_classes

from main.errors import ConfigError, MainError
from main.options import parse, shown
from main.predictor.sampling import GenerationOptions
from main.trainer.arguments import LoopOptions
from main.utils.merge_model import MergeOptions

KINDS = sorted(
    (kind for kind in options_classes() if dataclasses.fields(kind)),
    key=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
HINTS = {kind: typing.get_type_hints(kind, include_extras=True) for kind in KINDS}


def required(kind: Any) -> list[str]:
    missing = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if field.default is missing and field.default_factory is missing
    ]


@st.composite
def given_options(draw: st.DrawFn, kind: Any) -> dict[str, Any]:
    """Values of a field's type and others, for some fields; now and then an unknown name."""
    names = [field.name for field in dataclasses.fields(kind)]
    chosen = draw(st.lists(st.sampled_from(names), max_size=5, unique=True))
    found: dict[str, Any] = dict.fromkeys(required(kind), "x")
    for name in chosen:
        fits = draw(st.integers(0, 3))
        found[name] = draw(wild.of_hint(HINTS[kind][name]) if fits else wild.ANYTHING)
    if draw(st.integers(0, 5)) == 0:
        found[draw(st.one_of(wild.WORDS, wild.TEXT))] = 1
    return found


@wild.how_many(250, 20_000)
def test_of_any_options_come_options_or_an_error_of_ours(examples):
    def check(kind: Any, data: Any) -> None:
        given = data.draw(given_options(kind))
        try:
            options = parse(kind, given, "f()")
            for name, _ in inspect.getmembers(kind, lambda one: isinstance(one, property)):
                getattr(options, name)
        except MainError as error:
            assert str(error)

    wild.holds(check, examples, kind=st.sampled_from(KINDS), data=st.data())


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (LoopOptions, {"lr": 10**400}, r"lr=1000+\.\.\. must be finite"),
        (LoopOptions, {"max_steps": 10**5000}, "max_steps=<int that cannot be shown> must be fin"),
        (LoopOptions, {"report_to": [10**5000]}, "report_to=<list that cannot be shown> must be"),
        (LoopOptions, {"save_strategy": np.array(["no", "x"])}, "must be one of .*, not ndarray"),
        (LoopOptions, {"resume_from_checkpoint": "a\0b"}, "has a null character in it"),
        (GenerationOptions, {"stop": [float("nan")]}, r"stop=\[nan\] must be finite"),
    ],
)
def test_values_that_no_number_no_choice_and_no_path_can_be_are_refused_by_name(
    kind, given, message
):
    with pytest.raises(ConfigError, match=message):
        parse(kind, given, "f()")


@pytest.mark.parametrize("wrong", [3, None, ["a"], "a\0b"])
def test_an_adapter_that_is_no_folder_is_refused_by_name(wrong):
    given = {"base": "base", "peft_path": [Path("a"), wrong], "output": "x" * 5000}
    with pytest.raises(ConfigError, match=r"peft_path has .* in it, and must be a folder"):
        parse(MergeOptions, given, "merge_model()")


def test_a_wrong_value_is_shown_by_its_beginning():
    assert shown("a" * 300) == repr("a" * 300)[:200] + "..."
    assert shown([1, "b"]) == "[1, 'b']"
