"""`main-peft completion bash|zsh|tcsh`: a script that completes commands, options and choices."""

import argparse
import typing
from importlib import import_module
from typing import Any

from main.cli.arguments import Arguments, tell
from main.cli.entry import COMMANDS
from main.cli.train import METHODS
from main.cli.words import kinds_of
from main.errors import ConfigError

SHELLS = ("bash", "zsh", "tcsh")
USAGE = """usage: main-peft completion SHELL

Print a script that completes commands, options and their choices.

  bash   main-peft completion bash >> ~/.bash_completion
  zsh    main-peft completion zsh > _main-peft, in a folder of $fpath
  tcsh   main-peft completion tcsh >> ~/.tcshrc"""


def run(words: list[str]) -> None:
    """Print the script."""
    if not words or words[0] in ("-h", "--help"):
        tell(USAGE)
        return
    if words[0] not in SHELLS or len(words) > 1:
        raise ConfigError(f"completion is for one of {', '.join(SHELLS)}, not {' '.join(words)!r}.")
    import shtab

    tell(shtab.complete(tree(), words[0]))


def tree() -> argparse.ArgumentParser:
    """All commands with all their options, as shtab reads them."""
    parser = argparse.ArgumentParser(prog="main-peft")
    commands = parser.add_subparsers()
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if name in ("train", "plan"):
            methods = command.add_subparsers()
            for method, kind in METHODS.items():
                leaf = methods.add_parser(method, help=kind.about, description=kind.about)
                _fill(leaf, import_module(f"main.cli.{name}").arguments(method))
        elif name == "completion":
            command.add_argument("shell", choices=SHELLS)
        else:
            _fill(command, import_module(f"main.cli.{name}").arguments())
    return parser


def _fill(parser: argparse.ArgumentParser, known: Arguments) -> None:
    import shtab

    files: Any = parser.add_argument("--config", help="a file of arguments")
    files.complete = shtab.FILE
    for option in known.options.values():
        about = option.help.replace("%", "%%").partition("; ")[0][:80]
        added: Any = parser.add_argument(f"--{option.name}", help=about)
        if choices := _choices(option.hint):
            added.choices = choices
        elif option.name.endswith(("path", "from_pretrained", "folder", "output", "data")):
            added.complete = shtab.FILE


def _choices(hint: Any) -> list[str]:
    """What a shell may offer; empty where other values are allowed, too."""
    found: list[str] = []
    for kind in kinds_of(hint):
        if typing.get_origin(kind) is typing.Literal:
            found += map(str, typing.get_args(kind))
        elif kind is bool:
            found += ["true", "false"]
        elif kind is not type(None):
            return []
    return found
