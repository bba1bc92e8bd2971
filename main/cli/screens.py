"""Help screens: 80 columns, no colours, each option with its types, its text and its default."""

import argparse
import dataclasses
import json
import re
import textwrap
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from main.cli.words import kinds_of
from main.options import KeyOf

if typing.TYPE_CHECKING:
    from jsonargparse import ArgumentParser

WIDTH = 80
OWN = """options:
  --config FILE         YAML with any of these names; flags count before it
  --print_config        print all arguments as such a file, and end"""


class Option(NamedTuple):
    """One field. default: `dataclasses.MISSING` where it has to be given."""

    part: int
    name: str
    hint: Any
    default: Any
    help: str
    group: str


def parser_of(command: str, about: str, options: Sequence[Option]) -> "ArgumentParser":
    """jsonargparse's parser; it reads values and writes the screen."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog=command,
        usage="...",
        description=wrapped(about),
        exit_on_error=False,
        add_help=False,
        formatter_class=_Screen,
    )
    groups: dict[str, Any] = {}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(_title(option.group))
        groups[option.group].add_argument(
            f"--{option.name}",
            type=_plain(option.hint),
            default=None if is_needed(option) else option.default,
            help=f"{option.help} {_note(option)}".replace("%", "%%").strip(),
            metavar=_metavar(option.hint),
        )
    return parser


def screen(parser: "ArgumentParser", positional: str, options: Sequence[Option]) -> str:
    """What `--help` prints."""
    parser.usage = _usage(parser.prog, positional, options)
    text = re.sub(r", --\w+\+ .*", "", parser.format_help().rstrip())  # jsonargparse's append
    marker = text.find("\n\n", text.find(parser.description or ""))
    return f"{text[:marker]}\n\n{OWN}{text[marker:]}"


def wrapped(text: str) -> str:
    """Lines of at most 80 columns; words and paths stay whole."""
    return "\n".join(
        textwrap.fill(
            line,
            WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        )
        for line in text.splitlines()
    )


def is_needed(option: Option) -> bool:
    return option.default is dataclasses.MISSING


def _usage(command: str, positional: str, options: Sequence[Option]) -> str:
    needed = [o.name for o in options if is_needed(o) and o.name != positional]
    words = [f"[{positional.upper()}]"] if positional else []
    words = [positional.upper() for o in options if o.name == positional and is_needed(o)] or words
    words += [f"--{name} {name.upper()}" for name in needed]
    lines, line = [], command
    for word in [*words, "[--config FILE]", "[--NAME VALUE ...]"]:
        if len(f"usage: {line} {word}") > WIDTH:
            lines.append(line)
            line = " " * 7
        line += f" {word}"
    return "\n".join([*lines, line])


def _title(summary: str) -> str:
    own = summary.partition(", beside")[0].rstrip(".")  # classes stand one after the other here
    return textwrap.shorten(own, WIDTH - 1, placeholder="...")


def _plain(hint: Any) -> Any:
    """A type without what is asked of its values beyond it: a KeyOf is text here."""
    parts = tuple(kinds_of(hint))
    return typing.Union[parts]  # noqa: UP007 (made of a tuple)


def _note(option: Option) -> str:
    names = [meta for meta in _metadata(option.hint) if isinstance(meta, KeyOf)]
    known = names[0].names if names else _literals(option.hint) if _is_long(option.hint) else []
    choices = f"one of {', '.join(known)}; " if known else ""
    if is_needed(option):
        return f"({choices}required)"
    if option.default is None and not choices:
        return ""
    default = json.dumps(option.default, default=str) if option.default is not None else "none"
    return f"({choices}default: {default.strip(chr(34))})"


def _metadata(hint: Any) -> Iterable[Any]:
    yield from getattr(hint, "__metadata__", ())
    for part in typing.get_args(hint):
        yield from _metadata(part)


def _literals(hint: Any) -> list[str]:
    literal = [kind for kind in kinds_of(hint) if typing.get_origin(kind) is typing.Literal]
    return [str(value) for kind in literal for value in typing.get_args(kind)]


def _is_long(hint: Any) -> bool:
    return len("|".join(_literals(hint))) > WIDTH // 2


def _metavar(hint: Any) -> str:
    """What may stand behind a flag, in short: INT|FLOAT, or the choices."""
    found: dict[str, None] = {}
    for kind in kinds_of(hint):
        if typing.get_origin(kind) is typing.Literal:
            found |= dict.fromkeys(["NAME"] if _is_long(hint) else _literals(kind))
        elif kind is bool:
            found |= {"true": None, "false": None}
        elif kind is Path:
            found["PATH"] = None
        elif kind is Any:
            found["VALUE"] = None
        elif kind is not type(None):
            found[(typing.get_origin(kind) or kind).__name__.upper()] = None
    if "PATH" in found:
        found.pop("STR", None)
    return "|".join(found).replace("LIST", "LIST ...").replace("STR", "TEXT")


class _Screen(argparse.RawDescriptionHelpFormatter):
    """80 columns whatever the terminal; never colours."""

    def __init__(self, prog: str, **options: Any):
        kept = {name: options[name] for name in ("indent_increment",) if name in options}
        super().__init__(prog, max_help_position=24, width=WIDTH, **kept)
