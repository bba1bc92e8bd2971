"""Reward functions by their names: a command line and a file cannot hold a function.

reward_func: reward_len                          # of main.utils.reward_func
reward_func: [rewards.py:my_reward, my.package:other]
reward_func: {fields_reward: {separator: "|"}}   # what the function of these arguments returns
"""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from main.errors import ConfigError, MissingFileError
from main.options import nearest

SHIPPED = "main.utils.reward_func"


def functions(given: Any) -> Any:
    """The function that a name means, or the list of those that a list of names means.

    Raises:
        ConfigError, MissingFileError: a name that means none.
    """
    if isinstance(given, list | tuple):
        return [functions(one) for one in given]
    if isinstance(given, Mapping):
        return _made(given)
    if not isinstance(given, str):
        raise ConfigError(f"reward_func={given!r} must be a name, or a list of names.")
    return _found(given)


def _made(given: Mapping[str, Any]) -> Any:
    """{name: arguments}: what the function returns."""
    if len(given) != 1:
        raise ConfigError(f"reward_func={dict(given)!r} must be one name with its arguments.")
    [(name, arguments)] = given.items()
    maker = _found(str(name))
    try:
        if isinstance(arguments, Mapping):
            return maker(**arguments)
        return maker(*(arguments if isinstance(arguments, list) else [arguments]))
    except TypeError as error:
        raise ConfigError(f"reward_func: {name} does not take these arguments: {error}.") from error


def _found(name: str) -> Any:
    place, colon, attribute = name.rpartition(":")
    if not colon:
        place, _, attribute = name.rpartition(".")
    module = _module(place or SHIPPED, name)
    found = getattr(module, attribute, None)
    if callable(found):
        return found
    known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
    more = "" if place else " Name one of your own as file.py:function or package.module:function."
    raise ConfigError(
        f"reward_func={name!r}: {module.__name__} has no function "
        f"'{attribute}'.{nearest(attribute, known)}{more}"
    )


def _module(place: str, name: str) -> ModuleType:
    if place.endswith(".py"):
        return _of_file(Path(place).expanduser(), name)
    if "" not in sys.path:
        sys.path.insert(0, "")  # `main-peft` does not look into the working directory by itself
    try:
        return importlib.import_module(place)
    except ImportError as error:
        raise ConfigError(f"reward_func={name!r}: {place} cannot be imported: {error}.") from error


def _of_file(path: Path, name: str) -> ModuleType:
    if not path.is_file():
        raise MissingFileError(f"reward_func={name!r}: there is no file '{path}'.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module
