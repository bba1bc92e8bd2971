"""Where the assistant's turns stand in a rendered dialogue, and whether all of it is written."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from main.dialogue.frame import Frame, beginning
from main.dialogue.marks import Piece, Text, content_name
from main.errors import DataError

Messages = Sequence[Mapping[str, Any]]


class View(NamedTuple):
    """A dialogue as a template writes it: of marks or of its own strings.

    text: the rendered dialogue, with the frame's `stop`. pieces: where its strings stand.
    prompt: number of an assistant's message -> what asks for it, rendered.
    """

    messages: Messages
    text: str
    texts: Sequence[Text]
    pieces: Sequence[Piece]
    prompt: Callable[[int], str]


class Turn(NamedTuple):
    """An assistant's turn in a rendered dialogue.

    place: number of its message. start, end: from the first character that a model generates to
        the last of the text that ends the turn.
    asked: the text before `start` is the prompt of inference.
    ended: an end text stands at its end.
    open: what the prompt of inference has after the text before `start`, where it is longer.
    missing: numbers of its strings that are not written.
    """

    place: int
    start: int
    end: int
    asked: bool
    ended: bool
    open: str
    missing: tuple[int, ...]


def find_turns(view: View, frame: Frame, added: re.Pattern[str]) -> list[Turn]:
    """Every assistant's turn of the dialogue.

    Raises:
        DataError: nothing shows where a turn begins.
    """
    first: dict[int, Piece] = {}
    for piece in view.pieces:
        first.setdefault(piece.number, piece)
    places = [i for i, m in enumerate(view.messages) if m["role"] == "assistant"]
    return [_find(view, place, first, frame, added) for place in places]


def unwritten(numbers: Iterable[int], messages: Messages, texts: Sequence[Text]) -> str:
    """The sentence about the first of these strings, or ''."""
    return next((_sentence(texts[number], messages) for number in numbers), "")


def _find(
    view: View, place: int, first: Mapping[int, Piece], frame: Frame, added: re.Pattern[str]
) -> Turn:
    before = [first[n].end for n, t in enumerate(view.texts) if t.turn < place and n in first]
    after = [first[n].start for n, t in enumerate(view.texts) if t.turn > place and n in first]
    own = [first[n] for n, t in enumerate(view.texts) if t.turn == place and n in first]
    limit = min(after, default=len(view.text))
    begin = min((piece.start for piece in own), default=limit)
    prompt = view.prompt(place)
    asked = view.text.startswith(prompt) and len(prompt) <= begin
    start, opened = len(prompt), ""
    if not asked:
        previous = max((end for end in before if end <= begin), default=0)
        gap = view.text[previous:begin]
        offset, length = beginning(frame.generation, gap, added)
        if not length and frame.generation:
            raise DataError(
                f"turn {place + 1}: the chat template writes the dialogue before it in another "
                "way once others follow, and nothing shows where the turn begins."
            )
        start, opened = previous + offset, frame.generation[length:]
    inside = [piece for piece in own if start <= piece.start]
    here = {piece.number for piece in inside}
    last = max((piece.end for piece in inside), default=start)
    found = frame.ends.search(view.text, last, limit)
    end = found.end() if found else last
    missing = tuple(n for n, t in enumerate(view.texts) if t.turn == place and n not in here)
    return Turn(place, start, end, asked, bool(found), opened, missing)


def _sentence(text: Text, messages: Messages) -> str:
    message = messages[text.turn]
    what = text.part
    calls = message.get("tool_calls")
    if calls and what == content_name("assistant"):
        what = "content beside a tool call"
    elif calls and len(calls) > 1 and what.startswith(("tool call", "argument")):
        what += f" ({len(calls)} calls in one turn)"
    shown = text.value if isinstance(text.value, str) else repr(text.value)
    return f"turn {text.turn + 1}: this template writes no {what}: {shown.strip()[:60]!r}."
