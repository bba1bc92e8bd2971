"""JSON as its standard has it: nothing is read as something else, and nothing is lost.

Python's reader takes NaN, makes 1e999 infinite, keeps one of two equal keys, and fails on long
integers and deep nesting with errors of its own.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

from main.options import shown

DEEPEST = 100  # levels of lists and objects; what reads a row later is recursive too
MOST_DIGITS = 1000  # of an integer
MOST_KEYS = 100_000  # of one object


class NotJson(ValueError):
    """One sentence on what is wrong, and nothing on where."""


def loads(text: str) -> Any:
    """The value of a text.

    Raises:
        NotJson: anything that is not JSON, or that Python cannot hold.
    """
    try:
        value = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        raise NotJson(syntax(error)) from error
    except RecursionError as error:
        raise NotJson(_TOO_DEEP) from error
    check(value)
    return value


def raw_decode(text: str, position: int) -> tuple[Any, int, str]:
    """The value that begins at a position, the position behind it, and what is wrong with it.

    Raises:
        json.JSONDecodeError, RecursionError: it has no end that can be found.
    """
    try:
        value, end = _STRICT.raw_decode(text, position)
        check(value)
    except NotJson as error:
        value, end = _LENIENT.raw_decode(text, position)
        return value, end, str(error)
    return value, end, ""


def syntax(error: json.JSONDecodeError | RecursionError) -> str:
    """As a sentence."""
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}."


def check(value: Any) -> None:
    """Raise NotJson for nesting that is too deep, and for text that is no Unicode."""
    check_shape(value)
    if half := half_character(value):
        raise NotJson(
            f"{half} is half a surrogate pair, not a character: "
            "the text was cut inside an escaped emoji; remove or complete it."
        )


def half_character(value: Any) -> str:
    """The first half of a surrogate pair in any text of a value, escaped; '' where none is."""
    try:
        json.dumps(value, ensure_ascii=False, default=repr).encode("utf-8")
    except UnicodeEncodeError as error:
        return ascii(error.object[error.start])
    return ""


def check_shape(value: Any) -> None:
    """Raise NotJson for nesting that is too deep, keys that are no text, and endless integers.

    Of values in memory too, whose containers may hold themselves.
    """
    level: list[Any] = [(value,)]
    for _ in range(DEEPEST + 2):
        level = list({id(inner): inner for outer in level for inner in _inner(outer)}.values())
        if not level:
            return
    raise NotJson(_TOO_DEEP)


_TOO_DEEP = f"not valid JSON: brackets are nested too deeply (more than {DEEPEST} levels)."


def _inner(value: Any) -> list[Any]:
    """The containers in a container, whose keys and integers are looked at."""
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise NotJson(f"a key must be a text; found {shown(wrong[0], 40)}.")
        value = list(value.values())
    if any(isinstance(one, int) and abs(one) >= _TOO_LONG for one in value):
        raise NotJson(f"a number has more than {MOST_DIGITS} digits; write it as text.")
    return [inner for inner in value if isinstance(inner, Mapping | list | tuple)]


_TOO_LONG = 10**MOST_DIGITS


def _constant(name: str) -> None:
    raise NotJson(f"not valid JSON: it has no {name}; write null, or leave the field out.")


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise NotJson(
            f"the number {text[:20]} is beyond {sys.float_info.max:.2g}; write it as text."
        )
    return value


def _int(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise NotJson(f"a number has {len(text)} digits, {text[:10]}...; write it as text.")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MOST_KEYS:
        raise NotJson(f"an object has {len(pairs):,} keys, and {MOST_KEYS:,} are the most.")
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = Counter(name for name, _ in pairs)
        twice = next(name for name, count in seen.items() if count > 1)
        raise NotJson(f"{twice!a} stands twice in one object; remove one of the two.")
    return found


_STRICT = json.JSONDecoder(
    parse_constant=_constant, parse_float=_float, parse_int=_int, object_pairs_hook=_object
)
_LENIENT = json.JSONDecoder(parse_int=str)  # reads over what is refused
