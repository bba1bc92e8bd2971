"""Who answers: every call of a predictor notes it, and batch inference hears it.

So a plain function that calls a predictor needs nothing to be known by.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from typing import Any, NamedTuple

from main.models.identity import files_digest
from main.models.training_record import plain


class Answerer(NamedTuple):
    """A model with its adapter.

    digest: of what they are, whatever they are called.
    model, adapter: how the caller named them; '' = no adapter.
    """

    digest: str
    model: str
    adapter: str = ""

    def __str__(self) -> str:
        return f"model '{self.model}'" + (f" with adapter '{self.adapter}'" if self.adapter else "")


class Note(NamedTuple):
    """One call of a predictor: who was asked, and what was asked of it beyond the defaults."""

    answerer: Answerer
    settings: dict[str, Any]


_here: ContextVar[list[Note] | None] = ContextVar("calls of predictors", default=None)
_open: list[list[Note]] = []


def answerer(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str] | None = None,
    quantization: str | None = None,
) -> Answerer:
    """Of a model in a folder, or on the hub, and an adapter's folder."""
    parts = [files_digest(path) for path in (model, adapter) if path is not None]
    name = f"{model} ({quantization})" if quantization else str(model)
    digest = hashlib.sha256(" ".join([*parts, quantization or ""]).encode()).hexdigest()
    return Answerer(digest, name, "" if adapter is None else str(adapter))


@contextmanager
def hearing() -> Iterator[list[Note]]:
    """The list to which every call of a predictor inside the block is added.

    A thread that the block starts counts as inside, unless another block is open at the time.
    """
    calls: list[Note] = []
    token = _here.set(calls)
    _open.append(calls)
    try:
        yield calls
    finally:
        _open[:] = [others for others in _open if others is not calls]
        _here.reset(token)


def note(who: Answerer | None, settings: Any, template: str, more: Mapping[str, Any]) -> None:
    """Tell whoever hears that `who` was asked.

    Args:
        settings: the call's options, a dataclass; those that differ from their defaults count.
        template: digest of the chat template; '' = not known.
        more: what else shapes the answers, such as variables of the template.
    """
    calls = _here.get()
    if calls is None and len(_open) == 1:
        (calls,) = _open
    if calls is None or who is None:
        return
    given = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name != "peft_path"}
    usual = {f.name: f.default for f in fields(settings)} | {"build_message": True}
    asked = {name: value for name, value in given.items() if value != usual[name]}
    asked |= {name: value for name, value in more.items() if value is not None}
    calls.append(Note(who, plain(asked | {"chat_template": template[:12]})))
