"""Words of a command line -> what was said of which option, as text."""

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from main.options import nearest

BOOLS = ("true", "false", "yes", "no", "null", "none")


class Said(NamedTuple):
    """One flag with its values.

    name: as in Python, without dashes; key: of one entry of a mapping, as in --name.key.
    """

    name: str
    key: str
    values: list[str]


class Words(NamedTuple):
    """flags, words that belong to none, and what is wrong."""

    flags: list[Said]
    others: list[str]
    problems: list[str]


def read_words(words: Sequence[str], hints: Mapping[str, Any]) -> Words:
    """Split words into flags.

    Args:
        hints: type of every option by each of its names: how many words its value may have.
    """
    flags: list[Said] = []
    others: list[str] = []
    problems: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            others.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        name, _, key = flag.replace("-", "_").partition(".")
        if name not in hints:
            problems.append(f"there is no option '--{flag}'.{_nearest(name, hints)}")
            _take(rest, len(rest))
            continue
        values = [value] if equals else _take(rest, _most(hints[name], rest))
        if not values and may_be(hints[name], bool):
            values = ["true"]
        if not values:
            problems.append(f"--{flag} needs a value.")
        flags.append(Said(name, key, values))
    return Words(flags, others, problems)


def _take(rest: list[str], most: int) -> list[str]:
    taken: list[str] = []
    while rest and len(taken) < most and not rest[0].startswith("--"):
        taken.append(rest.pop(0))
    return taken


def _most(hint: Any, rest: list[str]) -> int:
    """How many of the words that follow may be values."""
    if takes_several(hint):
        return len(rest)
    only_bool = may_be(hint, bool) and not may_be(hint, str)
    return 0 if only_bool and rest and rest[0].lower() not in BOOLS else 1


def kinds_of(hint: Any) -> Iterable[Any]:
    """The members of a union, annotations taken off."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        yield from kinds_of(typing.get_args(hint)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            yield from kinds_of(part)
    else:
        yield hint


def may_be(hint: Any, kind: type) -> bool:
    return any((typing.get_origin(part) or part) is kind for part in kinds_of(hint))


def takes_several(hint: Any) -> bool:
    return hint is Any or may_be(hint, list) or may_be(hint, tuple)


def _nearest(name: str, known: Iterable[str]) -> str:
    return nearest(name, known).replace("'", "'--", 1)
