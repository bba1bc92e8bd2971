"""`main-peft COMMAND ...`: finds the command, and says what went wrong in one message.

Exit status: 0 done; 2 something given cannot work; 1 something failed; 130 Ctrl-C.
"""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NamedTuple

from main import __version__
from main.cli.screens import wrapped
from main.errors import (
    ConfigError,
    DataError,
    MainError,
    MissingExtraError,
    MissingFileError,
    ModelError,
)
from main.options import nearest

# A command is a module with a function `run(words)`, and its line here.
COMMANDS = {
    "check": "look at rows before training on them",
    "train": "train an adapter: lora (SFT), dpo, ppo or grpo",
    "plan": "say what memory and time a run will need",
    "predict": "answer a text, lines of standard input, or a file",
    "chat": "talk with a model in the terminal",
    "serve": "serve a model and adapters with vLLM",
    "evaluate": "score answers against the gold ones",
    "merge": "merge adapters into their base model",
    "describe": "say what a model, an adapter or a checkpoint is",
    "report": "show what runs left, as one HTML file",
    "completion": "print a script that completes commands in your shell",
}
BAD_INPUT = (ConfigError, DataError, MissingExtraError, MissingFileError, ModelError)


class Failure(NamedTuple):
    """How a command ended: the status of the process and what is said on standard error."""

    status: int
    message: str


def console() -> int:
    """A process of a command: what is no terminal gets no bars of other libraries."""
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno > logging.WARNING)
    return main(sys.argv[1:])


def main(words: Sequence[str]) -> int:
    """Run a command; returns the exit status."""
    given = list(words)
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if given[0] == "--version":
        print(f"main-peft {__version__}")
        return 0
    try:
        with _notes():
            _command(given[0])(given[1:])
    except SystemExit as ended:  # after a help screen, or a polite kill
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    except (MainError, KeyboardInterrupt, BrokenPipeError) as error:
        failure = _failure(error)
        if failure.message:
            print(wrapped(failure.message), file=sys.stderr)
        return failure.status
    return 0


def overview() -> str:
    """What `main-peft --help` prints."""
    lines = [f"  {name:<12}{summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: main-peft COMMAND ...",
            "",
            "Parameter-efficient fine-tuning of large language models.",
            "",
            *lines,
            "",
            "main-peft COMMAND --help says what a command takes.",
        ]
    )


def _command(name: str) -> Callable[[list[str]], None]:
    if name not in COMMANDS:
        raise ConfigError(
            f"there is no command '{name}'.{nearest(name, COMMANDS)} Commands: "
            f"{', '.join(COMMANDS)}."
        )
    run: Callable[[list[str]], None] = import_module(f"main.cli.{name}").run
    return run


def _failure(error: BaseException) -> Failure:
    if isinstance(error, KeyboardInterrupt):
        return Failure(130, "main-peft: interrupted")
    if isinstance(error, BrokenPipeError):  # `main-peft ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Failure(1, "")
    rank = os.environ.get("RANK", "0")
    who = "main-peft" if rank == "0" else f"main-peft (process {rank})"
    return Failure(2 if isinstance(error, BAD_INPUT) else 1, f"{who}: {error}")


class _Plain(logging.Formatter):
    """A note as it is; a warning says that it is one."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return wrapped(level + text)


@contextmanager
def _notes() -> Iterator[None]:
    """What the library notes, on standard error; of several processes only the first one's."""
    ours = logging.getLogger("main")
    before = ours.level, ours.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(_Plain())
    ours.addHandler(handler)
    ours.propagate = False
    ours.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.level, ours.propagate = before
