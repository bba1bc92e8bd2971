"""docs/coming_from.md has a line for every option of TRL's, and says the truth in it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from main.trainer import dpo, grpo

trl = pytest.importorskip("trl")
PAGE = (Path(__file__).parents[1] / "docs/coming_from.md").read_text("utf-8")


def options_of(config: Any) -> set[str]:
    """What it has beyond TrainingArguments."""
    shared = {field.name for field in dataclasses.fields(TrainingArguments)}
    return {field.name for field in dataclasses.fields(config)} - shared


def lines(title: str) -> dict[str, str]:
    section = PAGE.split(f"### {title}\n")[1].split("\n#")[0]
    found = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    assert len(dict(found)) == len(found), "a line stands twice"
    return dict(found)


def names(trainer: Any, constructor: bool) -> dict[str, str]:
    """Accepted names, other spellings among them -> the option."""
    options, aliases = (
        (trainer.setup_class, trainer.setup_aliases)
        if constructor
        else (trainer.loop_class, trainer.loop_aliases)
    )
    return {field.name: field.name for field in dataclasses.fields(options)} | dict(aliases)


CASES = [("GRPOConfig", grpo.Trainer), ("DPOConfig", dpo.Trainer)]


@pytest.mark.parametrize(("title", "trainer"), CASES)
def test_every_option_of_trl_has_a_line_that_is_true(title, trainer):
    told = lines(title)
    assert set(told) == options_of(getattr(trl, title))
    both = names(trainer, True) | names(trainer, False)
    for theirs, line in told.items():
        here = names(trainer, "in the constructor" in line)
        if line.startswith("same"):
            assert here.get(theirs) == theirs, theirs
            continue
        assert theirs not in both or "TRL's name too" in line, theirs
        if line.startswith("not here"):
            continue
        named = re.match(r"(?:`\w+[^`]*`(?:, )?)+", line)
        assert named, f"{theirs}: neither 'same' nor a name of ours nor 'not here'"
        ours = re.findall(r"`(\w+)", named.group())
        assert set(ours) <= set(both), theirs
        if "TRL's name too" in line:
            assert both[theirs] == ours[0]


@pytest.mark.parametrize(("title", "trainer"), CASES)
def test_what_is_accepted_of_trls_options_is_not_told_to_be_missing(title, trainer):
    accepted = set(names(trainer, True)) | set(names(trainer, False))
    missing = {name for name, line in lines(title).items() if line.startswith("not here")}
    assert not missing & accepted
