"""A key that is shown nowhere."""


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
