"""A dialogue as its template writes it, with an account of every string and every turn.

What holds for all dialogues of a shape (the same roles, keys and calls, other strings) is found
once, on a dialogue of marks; a dialogue costs one rendering then.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from main.dialogue.marks import Piece, Text, marked, match, moved, pieces_of, search
from main.dialogue.normal import normal
from main.dialogue.renderer import Renderer
from main.dialogue.turns import Turn, View, find_turns, unwritten
from main.errors import ConfigError, DataError
from main.vision import template_message

_SHAPES = 4096  # kept; a data set has a few


class Dialogue(NamedTuple):
    """What a template is given.

    tools: JSON schemas. variables: of the template, for this dialogue alone.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None

    def until(self, place: int) -> "Dialogue":
        """The dialogue before message number `place`."""
        return self._replace(messages=self.messages[:place])


class Account(NamedTuple):
    """A rendered dialogue.

    texts, pieces: its strings, and where they stand in `text`.
    turns: the assistant's turns; their `missing` are numbers of `texts`.
    lost: numbers of the other turns' strings that are not written.
    """

    messages: list[dict[str, Any]]
    text: str
    texts: Sequence[Text]
    pieces: Sequence[Piece]
    turns: Sequence[Turn]
    lost: tuple[int, ...]

    @property
    def borders(self) -> list[int]:
        """Where prompts of inference end."""
        return [turn.start for turn in self.turns if turn.asked]

    def problem(self, numbers: Sequence[int]) -> str:
        """What the template does not write of these strings, as a sentence; '' of none."""
        return unwritten(numbers, self.messages, self.texts)


class _Shape(NamedTuple):
    text: str
    marks: list[Piece]
    turns: list[Turn]
    lost: tuple[int, ...]


class Accountant:
    """Accounts of the dialogues of one template; what a shape of them tells is kept with it."""

    def __init__(self, renderer: Renderer):
        self.renderer = renderer
        self._shapes: dict[str, _Shape | None] = renderer.shapes

    def account(self, dialogue: Dialogue, asks: bool = False) -> Account:
        """The dialogue as the template writes it.

        Args:
            asks: for the next answer; else a dialogue that ends with one.

        Raises:
            DataError: the template refuses the dialogue, writes no tools or reads no such
                variable, or a turn's place cannot be found.
        """
        self._check(dialogue)
        messages = normal(dialogue.messages)
        dialogue = dialogue._replace(messages=messages)
        signs, texts = marked(messages)
        shape = self._shape(dialogue._replace(messages=signs), texts, asks)
        text = self._text(dialogue, asks)
        pieces = match(shape.text, shape.marks, text, texts) if shape else None
        if shape is None or pieces is None:
            return self._singular(dialogue, text, texts, shape, asks)
        turns = [
            turn._replace(
                start=moved(turn.start, shape.marks, pieces),
                end=moved(turn.end, shape.marks, pieces),
            )
            for turn in shape.turns
        ]
        return Account(messages, text, texts, pieces, turns, shape.lost)

    def bare(self, dialogue: Dialogue) -> Account:
        """What asks for the next answer, of a template whose turns cannot be found.

        Raises:
            DataError: as `account`.
        """
        self._check(dialogue)
        messages = normal(dialogue.messages)
        _, texts = marked(messages)
        text = self.renderer.render(messages, True, dialogue.tools, dialogue.variables)
        order = [Piece(number, 0, 0) for number in range(len(texts))]
        return Account(messages, text, texts, search(text, order, texts), [], ())

    def _check(self, dialogue: Dialogue) -> None:
        if dialogue.tools and not self.renderer.writes_tools:
            raise DataError(
                "'tools': this chat template writes no tools. Describe them in the system turn, "
                "or use a model whose template does."
            )
        try:
            self.renderer.refuse_unread(dialogue.variables or {})
        except ConfigError as error:
            raise DataError(f"'chat_template_kwargs': {error}") from error

    def _shape(self, dialogue: Dialogue, texts: list[Text], asks: bool) -> _Shape | None:
        """What holds for all dialogues of this shape; None where a template refuses the marks."""
        key = _key(dialogue, asks)
        if key not in self._shapes:
            if len(self._shapes) >= _SHAPES:
                self._shapes.clear()
            try:
                text = self._text(dialogue, asks)
                self._shapes[key] = self._survey(dialogue, text, texts, pieces_of(text))
            except DataError:
                self._shapes[key] = None
        return self._shapes[key]

    def _singular(
        self, dialogue: Dialogue, text: str, texts: list[Text], shape: _Shape | None, asks: bool
    ) -> Account:
        """The account of a dialogue whose strings change what the template writes around them."""
        order = shape.marks if shape else [Piece(n, 0, 0) for n in range(len(texts))]
        pieces = search(text, order, texts)
        _, _, turns, lost = self._survey(dialogue, text, texts, pieces)
        if asks and shape:  # what a template changes, it has written
            lost = tuple(number for number in lost if number in shape.lost)
        return Account(list(dialogue.messages), text, texts, pieces, turns, lost)  # type: ignore

    def _survey(
        self, dialogue: Dialogue, text: str, texts: list[Text], pieces: list[Piece]
    ) -> _Shape:
        messages = dialogue.messages
        view = View(messages, text, texts, pieces, lambda place: self._prompt(dialogue, place))
        turns = find_turns(view, self.renderer.frame, self.renderer.encoder.added)
        written = {piece.number for piece in pieces}
        others = (n for n, t in enumerate(texts) if messages[t.turn]["role"] != "assistant")
        return _Shape(text, pieces, turns, tuple(n for n in others if n not in written))

    def _prompt(self, dialogue: Dialogue, place: int) -> str:
        return self._text(dialogue.until(place), asks=True)

    def _text(self, dialogue: Dialogue, asks: bool) -> str:
        text = self.renderer.render(dialogue.messages, asks, dialogue.tools, dialogue.variables)
        return text if asks else text + self.renderer.frame.stop


def _key(dialogue: Dialogue, asks: bool) -> str:
    shown = [template_message(m) if isinstance(m.get("content"), list) else m
             for m in dialogue.messages]  # fmt: skip
    parts = [shown, dialogue.tools, dialogue.variables, asks]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()
