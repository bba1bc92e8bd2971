"""Python functions as tools: their schemas, and their calls, which run side by side.

What goes wrong is told to the model as text, and counted.
"""

import functools
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from main.dialogue.tools import tool_schemas
from main.errors import ConfigError, DataError
from main.system.waiting import OutOfTime, Settled, settled


class Outcome(NamedTuple):
    """What came of a call: what the model is told, whether it failed, and how long it took."""

    text: str
    failed: bool
    seconds: float


class Toolbox:
    """Functions that a model may call.

    Args:
        functions: with type hints and a docstring that describes every argument.
        timeout: seconds for a call; None is no limit. A function given up may still go on in its
            thread.

    Raises:
        ConfigError: something that is no function, gives no schema, or has the name of another.
    """

    def __init__(self, functions: Sequence[Callable[..., Any]], timeout: float | None = None):
        if not isinstance(functions, list | tuple) or not functions:
            raise ConfigError(
                f"tools={functions!r} must be a list of Python functions, at least one."
            )
        other = [tool for tool in functions if not callable(tool)]
        if other:
            raise ConfigError(
                f"tools holds {str(other[0])[:80]!r}, which is no Python function: here a call is "
                "run, so that a schema alone does not do."
            )
        try:
            self.schemas = tool_schemas(functions)
        except DataError as error:
            raise ConfigError(str(error)) from error
        names = [schema["function"]["name"] for schema in self.schemas]
        self.functions = dict(zip(names, functions, strict=True))
        self.timeout = timeout

    def run(self, calls: Sequence[Mapping[str, Any]]) -> list[Outcome]:
        """What comes of each call of a message, in order."""
        wanted = [functools.partial(self._call(call["function"]["name"]), call["function"])
                  for call in calls]  # fmt: skip
        return [self._outcome(one) for one in settled(wanted, self.timeout)]

    def _call(self, name: str) -> Callable[[Mapping[str, Any]], Any]:
        """The function behind a name, of what a call says."""
        function = self.functions.get(name)
        if function is None:
            return self._unknown
        if inspect.iscoroutinefunction(function):
            return functools.partial(_awaited, function)
        return functools.partial(_called, function)

    def _unknown(self, call: Mapping[str, Any]) -> None:
        known = ", ".join(self.functions)
        raise UnknownTool(f"there is no tool {call['name']!r}; known: {known}.")

    def _outcome(self, found: Settled) -> Outcome:
        if found.error is None:
            return Outcome(_text(found.value), False, found.seconds)
        if isinstance(found.error, OutOfTime):
            problem = f"not done after {self.timeout:g} seconds."
        elif isinstance(found.error, UnknownTool):
            problem = str(found.error)
        else:
            problem = f"{type(found.error).__name__}: {found.error}"
        return Outcome(_written(f"Error: {problem}"), True, found.seconds)


class UnknownTool(Exception):
    """A call of something that is no tool."""


def _called(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    return function(**call["arguments"])


async def _awaited(function: Callable[..., Any], call: Mapping[str, Any]) -> Any:
    return await function(**call["arguments"])


def _text(result: Any) -> str:
    """Text as it is, other values as JSON where they can be."""
    if isinstance(result, str):
        return _written(result)
    try:
        return _written(json.dumps(result, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError):
        return _written(str(result))


def _written(text: str) -> str:
    """Without halves of characters, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode()
