"""One row of a file of responses, as one line of JSON.

A line has `idx`, `query`, `history` and `response` (null where the row failed), then `thoughts`
where they are split off, the gold `answer` where the row has one, `error` where it failed, and the
row's other columns.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import date, time
from typing import Any, NamedTuple

from main.dialogue.normal import CLOSE, OPEN
from main.evaluation.items import Item

START = b'{"idx": '  # of every line
# What str.splitlines takes for the end of a line and JSON leaves as it is.
_SEPARATORS = re.compile("[\x85\u2028\u2029]")


class Reply(NamedTuple):
    """What became of one row.

    response: None where it failed; error: why, as text.
    thoughts: what the response thought before it; None = they are part of it.
    """

    response: str | None
    error: str | None = None
    thoughts: str | None = None


def split_thoughts(response: str) -> Reply:
    """The response without the thoughts that it begins with; thoughts cut short leave it empty.

    >>> split_thoughts("<think>1 and 1</think>2")
    Reply(response='2', error=None, thoughts='1 and 1')
    """
    before, closed, after = response.partition(CLOSE)
    opened = before.lstrip().startswith(OPEN)
    if not (opened or closed):  # a prompt may have opened them
        return Reply(response, thoughts="")
    thoughts = before.lstrip().removeprefix(OPEN).strip()
    return Reply(after.lstrip(), thoughts=thoughts)


def encode_line(item: Item, reply: Reply) -> bytes:
    """One row of the file: exactly one line of UTF-8, whatever its texts contain."""
    asked = {"idx": item.idx, "query": item.query, "history": item.history}
    optional = {"thoughts": reply.thoughts, "answer": item.answer, "error": reply.error}
    given = {name: value for name, value in optional.items() if value is not None}
    return to_json({**asked, "response": reply.response, **given, **item.columns}) + b"\n"


def to_json(value: Any) -> bytes:
    """UTF-8 on one line.

    Arrays become lists, numbers of other libraries numbers, dates ISO texts, and what has no form
    in JSON the name of its type. NaN and infinities, which JSON does not have, become null.

    Raises:
        ValueError, TypeError, RecursionError: keys that are no text, or nesting without end.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, default=_other, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    text = _SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    # Half of a surrogate pair has no UTF-8; Python's escape of it is JSON's as well.
    return text.encode("utf-8", "backslashreplace")


def _other(value: Any) -> Any:
    if callable(getattr(value, "tolist", None)):  # of numpy and torch
        return value.tolist()
    if isinstance(value, date | time):
        return value.isoformat()
    return os.fspath(value) if isinstance(value, os.PathLike) else f"<{type(value).__name__}>"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else _finite(_other(value))
