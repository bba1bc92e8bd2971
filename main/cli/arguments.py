"""What a command accepts: the fields of options' dataclasses, as flags and in a YAML file.

Types and help screens are jsonargparse's. What is wrong with flags and file is found before a
model is touched, all of it told at once, and only what was given is handed on.
"""

import argparse
import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from main.cli.config_file import ConfigFile, read_config, scalar, structure
from main.cli.screens import Option, is_needed, parser_of, screen
from main.cli.texts import help_of, summary
from main.cli.words import Said, kinds_of, may_be, read_words, takes_several
from main.errors import ConfigError
from main.options import described, nearest, raise_all
from main.trainer.loop.run_file import METHOD, default_of, run_text, unwritten

if typing.TYPE_CHECKING:
    from jsonargparse import ArgumentParser

OWN = {"config": str, "print_config": bool}


class Part(NamedTuple):
    """Fields of one dataclass among the arguments of a command.

    kind: the dataclass. aliases: other accepted name -> field name.
    without: fields that a command line cannot give, each with the reason.
    """

    kind: type
    aliases: Mapping[str, str] = {}
    without: Mapping[str, str] = {}


class Given(NamedTuple):
    """What was said. parts: of each `Part` its fields; file: that it came from, if any."""

    parts: list[dict[str, Any]]
    file: ConfigFile | None


class Arguments:
    """The arguments of a command.

    Args:
        command: as it is typed, e.g. 'main-peft train lora'.
        about: what it does, for its help.
        positional: the option that words without a flag belong to.
        method: of training, which a file of arguments names.
    """

    def __init__(
        self,
        command: str,
        about: str,
        parts: Sequence[Part],
        positional: str = "",
        method: str = "",
    ):
        self.command, self.about, self.parts = command, about, list(parts)
        self.positional, self.method = positional, method
        self.options: dict[str, Option] = {}
        self.aliases: dict[str, str] = {}
        self.without: dict[str, str] = {}
        for number, part in enumerate(parts):
            self.without |= part.without
            for option in _options(number, part):
                self.options.setdefault(option.name, option)
        self._name_aliases()

    def _name_aliases(self) -> None:
        """A name that would mean two options means none."""
        pairs = [(n, f) for part in self.parts for n, f in part.aliases.items()]
        for name, field in pairs:
            if {other for n, other in pairs if n == name} == {field} and name not in self.options:
                self.aliases[name] = field

    def parse(self, words: Sequence[str]) -> Given:
        """Read a command line and the file that it names.

        Raises:
            ConfigError: whatever is wrong, all in one message.
            SystemExit: after `--help` and `--print_config`, which are answered here.
        """
        if any(word in ("-h", "--help") for word in words):
            print(self.help())
            raise SystemExit(0)
        flags, others, problems = read_words(words, self._hints())
        problems += self._refused(said.name for said in flags)
        own = {said.name: said.values for said in flags if said.name in OWN}
        if [said.name for said in flags].count("config") > 1:
            raise ConfigError("--config is given twice: write one file, and flags for the rest.")
        path = own.get("config", [""])[-1]
        file = read_config(path) if path else None
        problems += self._unknown(file) if file else []
        values = self._of_file(file, problems) if file else {}
        self._add_flags(values, flags, problems)
        self._add_others(values, others, problems)
        raise_all(problems)
        if "print_config" in own:
            tell(self.as_file(values))
            raise SystemExit(0)
        return Given(self._by_part(values), file)

    def as_file(self, values: Mapping[str, Any]) -> str:
        """What `--config` reads; what has to be given and was not stands as ???."""
        needed = {o.name: "???" for o in self.options.values() if is_needed(o)}
        given = {name: values.get(name, needed.get(name)) for name in self.options
                 if name in values or name in needed}  # fmt: skip
        defaults = {n: option.default for n, option in self.options.items() if n not in given}
        method = {METHOD: self.method} if self.method else {}
        return run_text(method | given, defaults, f"Read with: {self.command} --config FILE")

    def _hints(self) -> dict[str, Any]:
        """By every name; what follows an option of any type may be the text without a flag."""
        hints = {name: option.hint for name, option in self.options.items()}
        if self.positional:
            hints = {name: object if hint is Any else hint for name, hint in hints.items()}
        aliases = {name: hints[field] for name, field in self.aliases.items()}
        return {**hints, **aliases, **dict.fromkeys(self.without, Any), **OWN}

    def _refused(self, names: Iterable[str]) -> list[str]:
        return [
            f"'{name}' cannot be given here: {self.without[name]}."
            for name in names
            if name in self.without and name not in OWN
        ]

    def _unknown(self, file: ConfigFile) -> list[str]:
        known = [*self.options, *self.aliases]
        names = [*file.values, *file.defaults]
        return [
            f"config '{file.path}' has no argument '{name}' to give.{nearest(name, known)}"
            if name not in self.without
            else f"config '{file.path}': '{name}' cannot be given here: {self.without[name]}."
            for name in names
            if name not in known and not (name in file.defaults and name in self.without)
        ]

    def _of_file(self, file: ConfigFile, problems: list[str]) -> dict[str, Any]:
        """The file's values; of its defaults those that are other ones here."""
        values: dict[str, Any] = {}
        for given, source in ((file.defaults, True), (file.values, False)):
            for name, value in given.items():
                field = self.aliases.get(name, name)
                if field not in self.options:
                    continue
                if not source and name != field and field in file.values:
                    problems.append(f"'{name}' and '{field}' are the same argument: give one.")
                made = self._made(field, value, name, problems)
                if not (source and _equal(made, self.options[field].default)):
                    values[field] = made
        return values

    def _add_flags(
        self, values: dict[str, Any], flags: Sequence[Said], problems: list[str]
    ) -> None:
        """A flag counts before the file; of a mapping, --name.key changes one entry."""
        for said in flags:
            field = self.aliases.get(said.name, said.name)
            if field not in self.options or not said.values:
                continue
            if said.key:
                before = values.get(field)
                entry = {said.key: structure(said.values[-1])}
                made: Any = {**(before if isinstance(before, dict) else {}), **entry}
                values[field] = self._made(field, made, said.name, problems)
            else:
                values[field] = self._made(field, self._value(field, said), said.name, problems)

    def _value(self, field: str, said: Said) -> Any:
        """Text for one word; a list for several, or where nothing but a list fits."""
        hint = self.options[field].hint
        several = takes_several(hint)
        bracketed = said.values[0].lstrip().startswith(("[", "{"))
        if len(said.values) == 1 and (not several or bracketed or hint is Any):
            return structure(said.values[0]) if hint is Any else said.values[0]
        if len(said.values) == 1 and may_be(hint, str):
            return said.values[0]
        texts = any(typing.get_args(kind)[:1] == (str,) for kind in kinds_of(hint))
        read = structure if hint is Any else scalar
        return [text if texts else read(text) for text in said.values]

    def _add_others(self, values: dict[str, Any], others: list[str], problems: list[str]) -> None:
        if not others:
            return
        if not self.positional:
            problems.append(f"'{others[0]}' belongs to no option; write --NAME {others[0]}.")
        elif takes_several(self.options[self.positional].hint):
            values[self.positional] = others
        elif len(others) > 1:
            problems.append(f"{self.command} takes one {self.positional}, not {len(others)}.")
        else:
            values[self.positional] = others[0]

    def _made(self, field: str, value: Any, name: str, problems: list[str]) -> Any:
        """The value in the option's type; text is read as the type wants it."""
        option = self.options[field]
        if text := unwritten(value):
            problems.append(f"{name}: {text} has no form in a file; give --{name}, or a script.")
            return value
        if option.hint is Any or (value is None and may_be(option.hint, type(None))):
            return value
        if isinstance(value, str) and value.lower() in ("none", "null"):
            value = None if may_be(option.hint, type(None)) else value
        try:
            if isinstance(value, str):
                read = self.parser.parse_args([f"--{field}={value}"], defaults=False)
            else:
                read = self.parser.parse_object({field: value}, defaults=False)
        except argparse.ArgumentError:
            problems.append(f"{name}={value!r} must be {described(option.hint)}.")
            return value
        given = scalar(value) if isinstance(value, str) else value
        is_whole = isinstance(read[field], float) and isinstance(given, int)
        return given if is_whole else read[field]  # 2 stays 2, as a script gives it

    def _by_part(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{} for _ in self.parts]
        for name, value in values.items():
            parts[self.options[name].part][name] = value
        return parts

    @cached_property
    def parser(self) -> "ArgumentParser":
        """jsonargparse's parser of all options."""
        return parser_of(self.command, self.about, list(self.options.values()))

    def help(self) -> str:
        return screen(self.parser, self.positional, list(self.options.values()))


def _options(number: int, part: Part) -> Iterable[Option]:
    hints = typing.get_type_hints(part.kind, include_extras=True)
    bases = [base for base in part.kind.__mro__ if dataclasses.is_dataclass(base)]
    fields = {field.name: field for field in dataclasses.fields(part.kind)}
    for base in bases:  # what is particular to the command first
        for name in inspect.get_annotations(base):
            first = [b for b in bases if name in inspect.get_annotations(b)][-1]
            if name in fields and first is base and name not in part.without:
                about = help_of(part.kind, name)
                default = default_of(fields[name])
                yield Option(number, name, hints[name], default, about, summary(base))


def _equal(one: Any, other: Any) -> bool:
    lists = isinstance(one, list | tuple) and isinstance(other, list | tuple)
    return list(one) == list(other) if lists else bool(one == other)


def tell(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
    sys.stdout.flush()
