"""Keyword arguments -> a checked dataclass; every problem is gathered and reported at once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from main.errors import ConfigError

T = TypeVar("T")


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'batch_size'?", or '' when nothing known is close."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{found[0]}'?" if found else ""


def unknown_keywords(given: Iterable[str], known: Iterable[str], where: str) -> list[str]:
    """One sentence for every name in `given` that is not in `known`."""
    known = list(known)
    return [
        f"{where} has no argument '{name}'.{nearest(name, known)}"
        for name in given
        if name not in known
    ]


def parse(
    options: type[T], given: Mapping[str, Any], where: str, aliases: Mapping[str, str] | None = None
) -> T:
    """Build the dataclass `options` from keyword arguments.

    Args:
        options: a dataclass; an optional method `problems() -> list[str]` checks values.
        given: keyword arguments as the caller wrote them.
        where: name of the callee, for messages, e.g. "lora.Trainer()".
        aliases: other accepted name -> field name.

    Raises:
        ConfigError: unknown names (with the nearest known one), a value of the wrong type, a name
            given twice under two spellings, or whatever `problems()` finds; all in one message.
    """
    aliases = aliases or {}
    fields = {field.name: field for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(options)
    values: dict[str, Any] = {}
    spelt: dict[str, str] = {}  # field -> the name under which it was given
    problems = unknown_keywords(given, [*fields, *aliases], where)
    for name, value in given.items():
        field = aliases.get(name, name)
        if field not in fields:
            continue
        if field in values:
            problems.append(
                f"'{spelt[field]}' and '{name}' are the same argument: give one of them."
            )
            continue
        values[field], spelt[field] = value, name
        if not _fits(value, hints[field]):
            problems.append(
                f"{name}={value!r} must be {_describe(hints[field])}, not {type(value).__name__}."
            )
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    problems += [f"{where} needs '{name}'." for name in required if name not in values]
    raise_all(problems)
    result = options(**values)
    if hasattr(result, "problems"):
        raise_all(result.problems())
    return result


def below(options: Any, bounds: Mapping[str, float]) -> list[str]:
    """One sentence for every value of `options` under its bound; None is no value."""
    return [
        f"{name}={value} must be {bound} or more."
        for name, bound in bounds.items()
        if (value := getattr(options, name)) is not None and value < bound
    ]


def not_positive(options: Any, names: Iterable[str]) -> list[str]:
    """One sentence for every named value of `options` that is 0 or less; None is no value."""
    return [
        f"{name}={value} must be above 0."
        for name in names
        if (value := getattr(options, name)) is not None and value <= 0
    ]


def raise_all(problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem; do nothing when there is none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems:\n" + "\n".join(f"- {p}" for p in problems))


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return value in typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    target = origin or hint
    return isinstance(value, target) if isinstance(target, type) else True


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return {float: "a number", int: "an integer", str: "a string", bool: "True or False"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
