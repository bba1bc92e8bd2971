"""`run.yaml` beside a run's checkpoints: all arguments of constructor and call, to run it again.

    method: lora                    # what was given, and what differs from the class's defaults
    from_pretrained: models/...
    defaults:                       # everything else, as this version has it
      lora_r: 16

The command line reads it (`main/cli/config_file.py`). Objects of a script, such as a tokenizer or a
function that cannot be imported, and secrets stand as texts in angle brackets, which it refuses.
"""

import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, fields
from pathlib import Path
from types import FunctionType
from typing import Any

from main import __version__
from main.options import Options
from main.system.disk import appearing
from main.system.masking import masked, names_secret

NAME = "run.yaml"
METHOD, DEFAULTS = "method", "defaults"
SECRET = "<secret: not written>"
_UNWRITTEN = re.compile(r"<(secret|object of a script|function of a script): [^>]*>")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_spellings: ContextVar[Mapping[str, Any] | None] = ContextVar("spellings", default=None)


@contextmanager
def spelt(values: Mapping[str, Any]) -> Iterator[None]:
    """Inside, arguments of these names are written as these values, whatever was made of them."""
    token = _spellings.set(values)
    try:
        yield
    finally:
        _spellings.reset(token)


def write_run_file(folder: Path, method: str, parts: list[Options]) -> None:
    """Write the file; `parts` are the options of constructor and call.

    Raises:
        DiskError: it cannot be written.
    """
    given: dict[str, Any] = {METHOD: method}
    defaults: dict[str, Any] = {}
    for options in parts:
        for name, value, is_default in _values(options):
            (defaults if is_default else given)[name] = value
    command = masked(f"main-peft train --config {_shown(folder)}/{NAME}")
    again = f"The same run again:\n#   {command}"
    folder.mkdir(parents=True, exist_ok=True)
    with appearing(folder / NAME) as path:
        path.write_text(run_text(given, defaults, again), encoding="utf-8")


def run_text(given: Mapping[str, Any], defaults: Mapping[str, Any], head: str) -> str:
    """The file's text; `head` is a comment."""
    return "\n".join(
        [
            f"# main-peft {__version__}. {head}",
            _yaml({name: written(name, value) for name, value in given.items()}),
            "# Not given: as this version has it. A value changed here counts, too.",
            _yaml({DEFAULTS: {name: written(name, value) for name, value in defaults.items()}}),
        ]
    )


def _values(options: Options) -> Iterator[tuple[str, Any, bool]]:
    """Name, value and whether it is a default that nobody gave."""
    for field in fields(options):
        value = getattr(options, field.name)
        default = default_of(field)
        own = default is not MISSING and value == default and type(value) is type(default)
        yield field.name, value, bool(own) and field.name not in options.given


def default_of(field: Any) -> Any:
    """Of a dataclass's field; MISSING where it has to be given."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def written(name: str, value: Any) -> Any:
    """A value as YAML keeps it."""
    spellings = _spellings.get() or {}
    if name in spellings:
        return spellings[name]
    if names_secret(name) and isinstance(value, str):
        return SECRET
    if isinstance(value, str):
        return _without_secrets(value)
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, Mapping):
        return {str(key): written(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [written(name, inner) for inner in value]
    if isinstance(value, os.PathLike):
        return _without_secrets(os.fspath(value))
    return _function(value) or f"<object of a script: {type(value).__name__}>"


def _without_secrets(text: str) -> str:
    """An address without its user; a text that would have another secret is not written."""
    text = _CREDENTIALS.sub("", text)
    return text if masked(text) == text else SECRET


def unwritten(value: Any) -> str:
    """The first text in a value of a file that stands for what could not be written; or ''."""
    if isinstance(value, str):
        return value if _UNWRITTEN.fullmatch(value) else ""
    inner = value.values() if isinstance(value, Mapping) else value
    parts = inner if isinstance(inner, Iterable) else ()
    return next(filter(None, map(unwritten, parts)), "")


def _function(value: Any) -> str:
    """'module:name', or 'file.py:name' of a module that is not installed; '' for anything else."""
    if not isinstance(value, FunctionType) or "<" in value.__qualname__:
        return ""
    module = sys.modules.get(value.__module__)
    if value.__module__ == "__main__" or module is None:
        return f"<function of a script: {value.__qualname__}>"
    try:
        found = importlib.util.find_spec(value.__module__)
    except (ValueError, ImportError):
        found = None
    file = getattr(module, "__file__", None)
    here = value.__module__ if found and found.origin == file else _shown(Path(file or "<lost>"))
    return f"{here}:{value.__qualname__}"


def _shown(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=100))
