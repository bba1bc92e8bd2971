"""A YAML file of arguments: flat, each name once; `run.yaml` of a run is one."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from main.errors import ConfigError, MissingFileError
from main.trainer.loop.run_file import DEFAULTS, METHOD


class ConfigFile(NamedTuple):
    """method: '' where the file names none. defaults: what counts where it differs from ours."""

    path: Path
    method: str
    values: dict[str, Any]
    defaults: dict[str, Any]


class _Strict(yaml.SafeLoader):
    """Refuses a name that stands twice; 1e-4 is a number and no is a word, as in YAML 1.2."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (its base's, without truth values)
        first: [(tag, regex) for tag, regex in known if not tag.endswith(":bool")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key, deep=True) for key, _ in node.value]
    for name in names:
        if names.count(name) > 1:
            line = node.start_mark.line + 1
            raise ConfigError(f"'{name}' stands there twice (in the mapping from line {line} on).")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF")
)
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
_Strict.add_constructor(
    "tag:yaml.org,2002:timestamp", lambda loader, node: loader.construct_scalar(node)
)


def read_config(path: str | Path) -> ConfigFile:
    """Raises MissingFileError, ConfigError: no such file, or one that is no flat mapping."""
    file = Path(path).expanduser()
    try:
        values = yaml.load(file.read_text(encoding="utf-8-sig"), _Strict)
    except FileNotFoundError as error:
        raise MissingFileError(f"config '{path}' does not exist.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config '{path}' cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config '{path}' is no YAML: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"config '{path}': {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"config '{path}' must be names with their values, as 'lr: 1e-4'.")
    method, defaults = values.pop(METHOD, ""), values.pop(DEFAULTS, None) or {}
    if not isinstance(method, str) or not isinstance(defaults, dict):
        raise ConfigError(f"config '{path}': '{METHOD}' is a name, '{DEFAULTS}' a mapping.")
    return ConfigFile(file, method, values, defaults)


def scalar(text: str) -> Any:
    """A word as YAML reads it, where that is a number, a truth value or nothing."""
    try:
        value = yaml.load(text, _Strict)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, bool | int | float | None) else text


def structure(text: str) -> Any:
    """A word as YAML reads it where it is a list or a mapping in brackets, else `scalar`."""
    if not text.lstrip().startswith(("[", "{")):
        return scalar(text)
    try:
        return yaml.load(text, _Strict)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no YAML: {' '.join(str(error).split())}") from error
