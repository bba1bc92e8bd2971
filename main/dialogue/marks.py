"""Which strings of a dialogue a chat template writes, and where: shown by marks in their place.

A dialogue whose every string is replaced by a mark is rendered once for each shape of dialogue.
What lies between the marks is the template's own; a real dialogue of that shape is the same text
with its strings in the place of the marks, as they stand, trimmed or escaped.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from main.dialogue.messages import WEIGHTS
from main.vision.media import is_visual

_MARK = re.compile(r"qx(\d{5})zj|90725(\d{5})(?:\.5)?")


class Text(NamedTuple):
    """One string (or number) of a dialogue.

    turn: number of its message, from 0. part: what it is, for messages.
    """

    turn: int
    part: str
    value: Any


class Piece(NamedTuple):
    """Where text number `number` stands: characters [start, end)."""

    number: int
    start: int
    end: int


def marked(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Text]]:
    """The dialogue with a mark for each string, and the strings; messages as `normal` makes them.

    Blank strings stand as they are: templates ask whether there is something, and there is
    nothing to account for. The same holds for true, false and null among arguments.
    """
    texts: list[Text] = []
    return [_marked(turn, m, texts) for turn, m in enumerate(messages)], texts


def pieces_of(text: str) -> list[Piece]:
    """The marks in a rendered dialogue, in order."""
    found = _MARK.finditer(text)
    return [Piece(int(m[1] or m[2]), m.start(), m.end()) for m in found]


def match(
    skeleton: str, marks: Sequence[Piece], text: str, texts: Sequence[Text]
) -> list[Piece] | None:
    """Where the strings stand in a text that is the skeleton with strings for marks; else None.

    Args:
        skeleton: the dialogue of marks as rendered.
        marks: where its marks are.
        text: the dialogue itself as rendered.
        texts: its strings.
    """
    if not marks:  # blank contents alone
        return [] if text == skeleton else None
    found: list[Piece] = []
    position = at = 0
    stops = [*(mark.start for mark in marks[1:]), len(skeleton)]
    for mark, stop in zip(marks, stops, strict=True):
        literal = skeleton[at : mark.start]
        if not text.startswith(literal, position):
            return None
        position += len(literal)
        follows = skeleton[mark.end : stop]
        end = _end_of(texts[mark.number].value, text, position, follows)
        if end is None:
            return None
        found.append(Piece(mark.number, position, end))
        position, at = end, mark.end
    return found if text[position:] == skeleton[at:] else None


def search(text: str, marks: Sequence[Piece], texts: Sequence[Text]) -> list[Piece]:
    """Where the strings stand in a text that is not the skeleton's: each after the one before."""
    found: list[Piece] = []
    position = 0
    for mark in marks:
        value = texts[mark.number].value
        places = [(text.find(form, position), len(form)) for form in forms(value) if form]
        places = [(start, size) for start, size in places if start >= 0]
        if places:
            start, size = min(places, key=lambda place: (place[0], -place[1]))
            found.append(Piece(mark.number, start, start + size))
            position = start + size
    return found


def moved(offset: int, marks: Sequence[Piece], places: Sequence[Piece]) -> int:
    """An offset between marks of a skeleton -> the offset in a text that `match` fits."""
    shift = 0
    for mark, place in zip(marks, places, strict=True):
        if mark.end > offset:
            break
        shift = place.end - mark.end
    return offset + shift


def trimmed(piece: Piece, texts: Sequence[Text]) -> bool:
    """Whether the template wrote a string without the blanks around it."""
    value = texts[piece.number].value
    return isinstance(value, str) and piece.end - piece.start < len(value)


def _marked(turn: int, message: Mapping[str, Any], texts: list[Text]) -> dict[str, Any]:
    def mark(part: str, value: Any) -> Any:
        return _replace(turn, part, value, texts)

    new = {key: value for key, value in message.items() if key not in WEIGHTS}
    role = str(message["role"])
    if message.get("reasoning_content"):
        new["reasoning_content"] = mark("thoughts", message["reasoning_content"])
    content = message.get("content")
    if isinstance(content, str):
        new["content"] = mark(content_name(role), content)
    elif isinstance(content, list):
        new["content"] = [_marked_part(part, content_name(role), mark) for part in content]
    if message.get("tool_calls"):
        new["tool_calls"] = [_marked_call(call, mark) for call in message["tool_calls"]]
    if message.get("name") and role != "tool":
        new["name"] = mark(f"'name' of a turn of the {role}", message["name"])
    if message.get("metadata"):
        new["metadata"] = mark("'metadata' (the tool that a ChatGLM calls)", message["metadata"])
    return new


def content_name(role: str) -> str:
    """What the content of a message of this role is called in messages."""
    results = ("tool", "observation", "function")
    return "tool result" if role in results else f"content of the {role}"


def _marked_part(part: Any, name: str, mark: Any) -> Any:
    if is_visual(part) or not isinstance(part.get("text"), str):
        return part
    return {**part, "text": mark(name, part["text"])}


def _marked_call(call: Mapping[str, Any], mark: Any) -> dict[str, Any]:
    function = call["function"]
    new = {"name": mark("tool call", function["name"])}
    arguments = mark(f"argument of the tool call {function['name']}", function["arguments"])
    return {**call, "function": {**function, **new, "arguments": arguments}}


def _replace(turn: int, part: str, value: Any, texts: list[Text]) -> Any:
    if isinstance(value, Mapping):
        return {k: _replace(turn, part, v, texts) for k, v in value.items()}
    if isinstance(value, list):
        return [_replace(turn, part, v, texts) for v in value]
    if isinstance(value, str) and value.strip():
        shown: Any = f"qx{len(texts):05d}zj"
    elif isinstance(value, int) and not isinstance(value, bool):
        shown = int(f"90725{len(texts):05d}")
    elif isinstance(value, float):
        shown = float(f"90725{len(texts):05d}.5")
    else:
        return value
    texts.append(Text(turn, part, value))
    return shown


def _end_of(value: Any, text: str, position: int, follows: str) -> int | None:
    """Where a string ends that stands at `position` and before `follows`."""
    for form in forms(value):
        end = position + len(form)
        if text.startswith(form, position) and text.startswith(follows, end):
            return end
    return None


def forms(value: Any) -> Iterator[str]:
    """How a template may write a string or number."""
    if not isinstance(value, str):
        yield from dict.fromkeys((json.dumps(value), str(value)))
        return
    yield value
    for strip in (str.strip, str.rstrip, str.lstrip):
        yield strip(value)
        yield strip(value, "\n")
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
