"""Keyword arguments -> a checked dataclass; every problem is gathered and reported at once."""

import dataclasses
import difflib
import inspect
import logging
import math
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from main.errors import ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")
_DEEPEST = 50  # levels of containers that are looked into


class KeyOf:
    """Marks an option that names an entry of a table: `Annotated[str, KeyOf(TABLE)]`.

    What there is is read from the table when a value is checked, so that an entry may be added.
    """

    def __init__(self, table: Mapping[str, Any], *others: str):
        self._table, self._others = table, others

    @property
    def names(self) -> list[str]:
        return [*self._table, *self._others]

    def __repr__(self) -> str:
        return f"one of {', '.join(map(repr, self.names))}"


@dataclasses.dataclass(kw_only=True)
class Options:
    """Keyword arguments that a caller may give; `parse` makes it.

    given: the fields that the caller gave, and not as None: these alone can be blamed.
    """

    given: typing.ClassVar[frozenset[str]] = frozenset()

    def problems(self) -> list[str]:
        """One sentence for everything in the values that cannot work."""
        return []

    def without_effect(self) -> dict[str, str]:
        """Fields that change nothing beside the others, each with what makes it so.

        `parse` refuses those of them that the caller gave.
        """
        return {}

    def harmless(self) -> frozenset[str]:
        """Those that are told instead: the user's guide gives them where they have no effect."""
        return frozenset()


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as " Did you mean 'batch_size'?", or '' when nothing known is close."""
    found = difflib.get_close_matches(str(name), [*map(str, known)], n=1, cutoff=0.6)
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
    options: type[T],
    given: Mapping[str, Any],
    where: str,
    aliases: Mapping[str, str] | None = None,
    without_effect: Callable[[T], Mapping[str, str]] | None = None,
) -> T:
    """Build the dataclass `options` from keyword arguments.

    Args:
        options: a dataclass; an optional method `problems() -> list[str]` checks values. See
            `Options` for what else it may say.
        given: keyword arguments as the caller wrote them.
        where: name of the callee, for messages, e.g. "lora.Trainer()".
        aliases: other accepted name -> field name.
        without_effect: says what `Options.without_effect` cannot know.

    Raises:
        ConfigError: unknown names (with the nearest known one), a value of the wrong type, a name
            given twice under two spellings, one without effect, or whatever `problems()` finds;
            all in one message.
    """
    values, spelt = _read(options, given, where, aliases or {})
    result = options(**values)
    found: list[str] = []
    if isinstance(result, Options):
        # of this object alone; no field, as it is no argument
        named = frozenset(name for name, value in values.items() if value is not None)
        vars(result)["given"] = named
        causes = without_effect(result) if without_effect else {}
        found += _useless(result, {**result.without_effect(), **causes}, spelt)
    if hasattr(result, "problems"):
        found += result.problems()
    raise_all(found)
    return result


def _read(
    options: type, given: Mapping[str, Any], where: str, aliases: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values by field, and the name under which each was given; see `parse`."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    hints = typing.get_type_hints(options, include_extras=True)
    values: dict[str, Any] = {}
    spelt: dict[str, str] = {}
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
        values[field], spelt[field] = _at_home(value, hints[field]), name
        problems += _wrong(name, value, hints[field])
    required = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    problems += [f"{where} needs '{name}'." for name in required if name not in values]
    raise_all(problems)
    return values, spelt


def _wrong(name: str, value: Any, hint: Any) -> list[str]:
    """A sentence on a value of another type, or one that is no finite number or no path."""
    if not _fits(value, hint):
        kind = type(value).__name__
        return [f"{name}={shown(value)} must be {described(hint)}, not {kind}."]
    if pathlib.Path in typing.get_args(hint) and "\0" in str(value):
        return [f"{name}={shown(value)} has a null character in it, which no path has."]
    return [] if _is_finite(value) else [f"{name}={shown(value)} must be finite."]


def shown(value: Any, most: int = 200) -> str:
    """A wrong value in an error text: the beginning of what Python shows of it."""
    try:
        text = repr(value)
    except Exception:  # an integer of thousands of digits; an object of somebody else's
        return f"<{type(value).__name__} that cannot be shown>"
    return text if len(text) <= most else f"{text[:most]}..."


def _at_home(value: Any, hint: Any) -> Any:
    """A path from the home folder on, where `~` stands for it."""
    if pathlib.Path not in typing.get_args(hint):
        return value
    if isinstance(value, list | tuple):
        return type(value)(_at_home(inner, hint) for inner in value)
    if isinstance(value, str) and value.startswith("~"):
        return str(pathlib.Path(value).expanduser())
    return value.expanduser() if isinstance(value, pathlib.Path) else value


def documentation(options: type) -> str:
    """What the docstrings of a dataclass and of its bases say of its fields, its own first."""
    bases = [base for base in options.__mro__ if dataclasses.is_dataclass(base) and base.__doc__]
    return "\n\n".join(inspect.cleandoc(str(base.__doc__)) for base in bases)


def _useless(options: Options, causes: Mapping[str, str], spelt: Mapping[str, str]) -> list[str]:
    """One sentence for every field that was given in vain; some are told at once instead."""
    found = []
    for name, cause in causes.items():
        if name not in options.given:
            continue
        text = f"{spelt[name]}={getattr(options, name)!r} changes nothing with {cause}"
        if name in options.harmless():
            log.warning("%s.", text)
        else:
            found.append(f"{text}: leave it out.")
    return found


def below(options: Any, bounds: Mapping[str, float]) -> list[str]:
    """One sentence for every value of `options` under its bound; None is no value."""
    return [
        f"{name}={value} must be {'finite' if value == math.inf else f'{bound} or more'}."
        for name, bound in bounds.items()
        if (value := getattr(options, name)) is not None and not bound <= value < math.inf
    ]


def not_positive(options: Any, names: Iterable[str]) -> list[str]:
    """One sentence for every named value of `options` that is 0 or less; None is no value."""
    return [
        f"{name}={value} must be above 0{' and finite' if value == math.inf else ''}."
        for name in names
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf
    ]


def raise_all(problems: list[str]) -> None:
    """Raise one ConfigError that lists every problem; do nothing when there is none."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError(f"{len(problems)} problems:\n" + "\n".join(f"- {p}" for p in problems))


def _is_finite(value: Any, depth: int = 0) -> bool:
    """No NaN, no infinity and no integer beyond all floats, in what a container holds either."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= sys.float_info.max
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    inner = value if isinstance(value, list | tuple | set | frozenset) else ()
    return depth > _DEEPEST or all(_is_finite(one, depth + 1) for one in inner)


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin is typing.Annotated:
        kind, key = typing.get_args(hint)
        return _fits(value, kind) and value in key.names
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        choices = typing.get_args(hint)
        return any(isinstance(value, type(choice)) and value == choice for choice in choices)
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    target = origin or hint
    return isinstance(value, target) if isinstance(target, type) else True


def described(hint: Any) -> str:
    """A type in words, as 'an integer or None'."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return repr(typing.get_args(hint)[1])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(described(part) for part in typing.get_args(hint))
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return {float: "a number", int: "an integer", str: "a string", bool: "True or False"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )
