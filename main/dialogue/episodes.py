"""Episodes: what a policy says and what the outside answers, turn after turn, as token ids.

    prompt | drawn: a call of a tool | added: its result | drawn: the answer

What was drawn is never encoded again: a text has many spellings in tokens, and the policy is
trained on, and goes on from, the one that it chose. What is added is the text that the chat
template writes between an answer and the prompt of the next one. So the whole episode has the ids
of the template's own rendering, wherever the template writes earlier turns as they were drawn;
where it writes them in another way once others follow (thoughts removed), the episode goes on from
the tokens that were drawn, and that is told once.
"""

import itertools
import logging
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from main.dialogue.accounts import Account, Accountant, Dialogue
from main.dialogue.control import forged
from main.dialogue.normal import CLOSE, OPEN
from main.dialogue.renderer import Renderer
from main.errors import DataError, GenerationError, ModelError

log = logging.getLogger(__name__)
Message = Mapping[str, Any]


class Drawn(NamedTuple):
    """One turn of the policy's.

    ids: T token ids, the end token among them if it `ended`.
    logprobs: T log-probabilities, nats; [] where nobody asked for them.
    ended: False where a limit cut the turn.
    """

    ids: list[int]
    logprobs: Sequence[float]
    ended: bool


class Segment(NamedTuple):
    """Ids that the policy drew, or that the outside added.

    logprobs: of drawn ids, as in `Drawn`. reward: that a step of an environment gave for them.
    """

    ids: list[int]
    drawn: bool
    logprobs: Sequence[float] = ()
    reward: float = 0.0


@dataclass
class Episode:
    """A prompt and all that follows.

    dialogue: what the prompt was made of. prompt_ids: its ids.
    seed: of the first turn; None = greedy, or random numbers of the caller's.
    row: what the outside may know of the task. visuals: the images in the prompt.
    segments: drawn ones and added ones in turn, a drawn one last.
    said: the messages after the prompt, as read from what was drawn and as added.
    ended: it came to its own end, no limit cut it.
    last: no turn may follow the latest one.
    rounds: how often the outside answered.
    calls, failures, seconds: of tools, the calls that were run, those that failed, and their time.
    environment: that answers it, where one does.
    """

    dialogue: Dialogue
    prompt_ids: list[int]
    seed: int | None = None
    row: Mapping[str, Any] = field(default_factory=dict)
    visuals: Sequence[Any] = ()
    segments: list[Segment] = field(default_factory=list)
    said: list[Message] = field(default_factory=list)
    ended: bool = False
    last: bool = False
    rounds: int = 0
    calls: int = 0
    failures: int = 0
    seconds: float = 0.0
    environment: Any = None

    @property
    def completion_ids(self) -> list[int]:
        return [token for segment in self.segments for token in segment.ids]

    @property
    def ids(self) -> list[int]:
        """What the policy continues."""
        return [*self.prompt_ids, *self.completion_ids]

    @property
    def drawn(self) -> list[bool]:
        """Of each of `completion_ids`, whether the policy drew it."""
        return [segment.drawn for segment in self.segments for _ in segment.ids]

    @property
    def logprobs(self) -> list[float]:
        """Of each of `completion_ids`; NaN for what was added, or where nobody asked."""
        return [
            value
            for segment in self.segments
            for value in (segment.logprobs or [math.nan] * len(segment.ids))
        ]

    @property
    def rewards(self) -> list[float]:
        """Of each of `completion_ids`: that of a step at the last token of its turn, else 0."""
        return [
            value
            for segment in self.segments
            for value in [0.0] * (len(segment.ids) - 1) + [segment.reward]
        ]

    @property
    def turns(self) -> int:
        return sum(segment.drawn for segment in self.segments)

    @property
    def turn_seed(self) -> int | None:
        """Of the turn that comes next; that of the first one is the episode's own."""
        if self.seed is None or not self.turns:
            return self.seed
        return random.Random(f"{self.seed}-{self.turns}").getrandbits(63)

    def take(self, drawn: Drawn, message: Message) -> None:
        """The policy's turn, and how it reads as a message."""
        self.segments.append(Segment(list(drawn.ids), True, drawn.logprobs))
        self.said.append(self._numbered(message))
        self.ended = drawn.ended

    def credit(self, reward: float) -> None:
        """Reward the latest turn."""
        self.segments[-1] = self.segments[-1]._replace(reward=reward)

    def add(self, messages: Sequence[Message], ids: list[int]) -> None:
        """What the outside answers, and the ids of it up to the prompt of the next turn."""
        self.said += messages
        self.segments.append(Segment(ids, False))
        self.rounds += 1

    def _numbered(self, message: Message) -> Message:
        """Its calls with ids, which some templates ask for."""
        calls = message.get("tool_calls")
        if not calls:
            return message
        before = sum(len(m.get("tool_calls") or ()) for m in self.said)
        numbers = itertools.count(before + 1)
        return {**message, "tool_calls": [{"id": f"call{next(numbers):05d}", **c} for c in calls]}


class Between:
    """What a template writes between an answer and the prompt of the next one, as ids.

    Raises:
        ModelError: as `Renderer.frame`.
    """

    def __init__(self, renderer: Renderer):
        self.renderer, self.accountant = renderer, Accountant(renderer)
        self.frame = renderer.frame
        self.told = False

    def ids(self, episode: Episode, replies: Sequence[Message]) -> list[int]:
        """What follows the latest turn of an episode once these messages answer it.

        It begins with the text that ends a turn where the policy ended it in another way.

        Raises:
            GenerationError: the template does not write these messages there.
        """
        account = self._account(episode, replies)
        if not self.told and any(turn.missing or not turn.asked for turn in account.turns):
            self.told = True
            log.warning(
                "The chat template of %r writes earlier turns in another way once others follow. "
                "Episodes go on from the tokens that were drawn.",
                self.renderer.tokenizer.name_or_path,
            )
        closing, following = self._pieces(account, episode.dialogue.tools)
        closed = episode.segments[-1].ids[-len(closing) :] == closing
        return following if closed else [*closing, *following]

    def end(self, episode: Episode, replies: Sequence[Message]) -> list[int]:
        """Ids of the text that ends a turn before these messages; see `ids`."""
        return self._pieces(self._account(episode, replies), episode.dialogue.tools)[0]

    def _pieces(self, account: Account, tools: Any) -> tuple[list[int], list[int]]:
        """(ids of the text that ends the latest turn, ids of what follows it)."""
        turn = account.turns[-1]
        *_, closing = self.frame.ends.finditer(account.text, turn.start, turn.end)
        begin, border = closing.start(), closing.end() - closing.start()
        forgeries = forged(account, tools, self.renderer.control)
        text = account.text[begin:]
        (encoded,) = self.renderer.encoder.encode(
            [text],
            [[(border, len(text))]],
            plain=[[place - begin for place in forgeries if place - begin > border]],
        )
        place = encoded.turns[0][0]
        return encoded.input_ids[:place], encoded.input_ids[place:]

    def _account(self, episode: Episode, replies: Sequence[Message]) -> Account:
        """The dialogue with these replies as its end.

        The policy's turns are stand-ins: what it said is in its ids, and a template may refuse it.
        """
        given, said = episode.dialogue, [*episode.said, *replies]
        try:
            try:
                account = self._asked(given, said)
            except DataError:  # some write one call a turn
                account = self._asked(given, said, most=1)
        except DataError as error:
            raise self._problem(f"refuses what answers a turn: {error}") from error
        first = len(given.messages) + len(episode.said)
        lost = [n for n in account.lost if account.texts[n].turn >= first]
        if lost:
            raise self._problem(f"does not write what answers a turn: {account.problem(lost)}")
        if not account.turns[-1].ended:
            raise self._problem("does not end a turn before what answers it.")
        return account

    def _asked(self, given: Dialogue, said: Sequence[Message], most: int | None = None) -> Account:
        said = [_stand_in(m, most) if m["role"] == "assistant" else m for m in said]
        return self.accountant.account(given._replace(messages=[*given.messages, *said]), asks=True)

    def _problem(self, problem: str) -> GenerationError:
        name = self.renderer.tokenizer.name_or_path
        return GenerationError(f"the chat template of {name!r} {problem}")


def between_turns(
    renderer: Renderer, stop_ids: Collection[int], tools: Sequence[Mapping[str, Any]] = ()
) -> Between:
    """What a template writes between turns, tried on an answer, or the call of a tool.

    Args:
        stop_ids: tokens at which the policy stops.
        tools: JSON schemas of what it may call, if it may.

    Raises:
        ModelError: the template cannot write such an episode; it says what.
    """
    between = Between(renderer)
    episode = Episode(Dialogue([{"role": "user", "content": "Quokka alpha"}], tools), [])
    turn: Message = {"role": "assistant", "content": "Quokka gamma"}
    reply: Message = {"role": "user", "content": "Narwhal beta"}
    if tools:
        function = {"name": tools[0]["function"]["name"], "arguments": {}}
        turn = {"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}
    episode.take(Drawn([], (), True), turn)
    if tools:
        reply = result(episode.said[0]["tool_calls"][0], "Narwhal beta")
    try:
        closing = between.end(episode, [reply])
    except GenerationError as error:
        raise ModelError(str(error)) from error
    if len(closing) != 1 or closing[0] not in stop_ids:
        what = "a tool call" if tools else "a turn"
        shown = renderer.tokenizer.decode(closing)
        raise ModelError(
            f"it ends {what} with {shown!r}, at which this model does not stop: it would go on and "
            "write the answer itself."
        )
    return between


def result(call: Mapping[str, Any], text: str) -> Message:
    """What a tool answers, as a message."""
    name = call["function"]["name"]
    return {"role": "tool", "name": name, "tool_call_id": call["id"], "content": text}


def _stand_in(message: Message, most: int | None) -> Message:
    """A turn of the same shape as the policy's, with so many of its calls."""
    calls = [_shape(call) for call in (message.get("tool_calls") or ())[:most]]
    shape: dict[str, Any] = {"role": "assistant", "content": "" if calls else "Quokka gamma"}
    if message.get("reasoning_content"):
        shape["reasoning_content"] = "Narwhal delta"
    elif CLOSE in str(message.get("content")):  # thoughts that are empty, or not closed once
        shape["content"] = f"{OPEN}\n\n{CLOSE}\n\n{shape['content']}"
    return {**shape, "tool_calls": calls} if calls else shape


def _shape(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["function"]["name"], "arguments": {"of": "Ibex epsilon"}}
    return {**call, "function": function}
