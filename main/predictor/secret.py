"""A key that is shown nowhere."""

import os
from typing import Any

from main.errors import ConfigError


class Key:
    """A secret that neither a repr nor a message shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str):
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "Key(hidden)"

    def reveal(self) -> str:
        return self._value

    def hidden_in(self, text: str) -> str:
        """The text, without the key where a server repeats it."""
        return text.replace(self._value, "[api_key]") if self._value else text


def key_of(given: Any, variable: str) -> Key:
    """The key that a caller gave, or that of a variable of the environment; both may have none.

    Raises:
        ConfigError: something that is no text.
    """
    if not isinstance(given, str | None):
        raise ConfigError(f"api_key must be a string or None, not {type(given).__name__}.")
    return Key(os.environ.get(variable, "") if given is None else given)
