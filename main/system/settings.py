"""Settings in the files of a model or an adapter: an object in JSON, which anybody wrote."""

import json
from pathlib import Path
from typing import Any

from main.errors import ModelError

LARGEST = 2**28  # bytes; vocabularies of a million words have a tenth of it


def read_settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} when there is no such file.

    Raises:
        ModelError: the file is not JSON in UTF-8, or no object, or larger than any such file.
    """
    if not path.is_file():
        return {}
    size = path.stat().st_size
    if size > LARGEST:
        raise ModelError(f"{path} has {size:,} bytes, and {LARGEST:,} are the most.")
    try:
        return settings_in(path.read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is not valid JSON in UTF-8: {error}") from error


def settings_in(text: str, where: Any) -> dict[str, Any]:
    """The object that a text is.

    Raises:
        ModelError: it is no JSON, or no object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not valid JSON in UTF-8: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{where} must hold an object; found {type(value).__name__}.")
    return value


def shards(index: Path) -> list[str]:
    """The files that an index of weights names, all of them beside it; [] where there is none.

    Raises:
        ModelError: it is no such index, or names a file elsewhere.
    """
    named = read_settings(index).get("weight_map", {})
    names: set[Any] = set(named.values()) if isinstance(named, dict) else {None}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ModelError(f"{index} names the file {name!r}, which is not one beside it.")
    return sorted(names)
