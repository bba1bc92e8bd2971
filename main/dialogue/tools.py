"""The tools of a dialogue as JSON schemas, however a row or a call gives them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from main.errors import DataError

# A schema, a Python function with type hints and a docstring, or a list of these as JSON text.
Tools = str | Sequence[Mapping[str, Any] | Callable[..., Any]]
_MEANS_NULL = ("default", "const", "example")  # keys of JSON schema under which null says something


def tool_schemas(tools: Tools | None) -> list[dict[str, Any]]:
    """Each tool as {"type": "function", "function": {"name": ..., ...}}; [] of none.

    Keys that are null are left out: tables of rows fill them in.

    Raises:
        DataError: something that is no schema and no function that makes one.
    """
    if tools is None or (isinstance(tools, str) and not tools):
        return []
    if isinstance(tools, str):
        tools = _read(tools)
    if not isinstance(tools, Sequence):
        raise DataError(f"'tools' must be a list of tools; found {type(tools).__name__}.")
    schemas = [_schema(tool, f"tools[{i}]") for i, tool in enumerate(tools)]
    names = [schema["function"]["name"] for schema in schemas]
    double = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if double is not None:
        raise DataError(f"'tools' has two tools called {double!r}; give each a name of its own.")
    return schemas


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"'tools' is a text that is not JSON: {error}.") from error


def _schema(tool: Any, place: str) -> dict[str, Any]:
    if callable(tool):
        return _of_function(tool, place)
    if not isinstance(tool, Mapping):
        raise DataError(
            f"{place} must be a JSON schema or a Python function; found {type(tool).__name__}."
        )
    found = _without_nulls(tool)
    if found.get("type", "function") != "function":
        raise DataError(f"{place} has the type {found['type']!r}; only 'function' can be called.")
    function = found.get("function", found)
    if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
        raise DataError(f"{place} has no 'name'; found {sorted(map(str, tool))}.")
    return found if "function" in found else {"type": "function", "function": _bare(function)}


def _bare(function: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in function.items() if key != "type"}


def _of_function(tool: Callable[..., Any], place: str) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:  # of several kinds; a docstring that lacks an argument is the usual
        name = getattr(tool, "__name__", type(tool).__name__)
        raise DataError(
            f"{place}, the function {name!r}, gives no schema: {error} A tool needs type hints and "
            "a docstring with an 'Args:' section that describes every argument."
        ) from error


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_nulls(v) for k, v in value.items() if v is not None or k in _MEANS_NULL}
    return [_without_nulls(v) for v in value] if isinstance(value, list) else value
