"""Who answers a policy between its turns: nobody, tools that it calls, or an environment."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any, NamedTuple

from main.dialogue.calls import CallFormat, format_of, read_answer
from main.dialogue.control import control_problem
from main.dialogue.episodes import Between, Episode, Message, between_turns, result
from main.dialogue.links import kind_of
from main.dialogue.normal import normal
from main.dialogue.renderer import Renderer
from main.dialogue.toolbox import Toolbox
from main.errors import ConfigError, ModelError, RewardError
from main.system.waiting import OutOfTime, settled

Step = tuple[Sequence[Message], float, bool]


class Outside(ABC):
    """Reads what a policy says, and answers it.

    between: how the template writes an answer; None = nobody answers.
    """

    between: Between | None = None

    def begin(self, episodes: Sequence[Episode]) -> None:  # noqa: B027 (optional to override)
        """Before the first turn."""

    @abstractmethod
    def read(self, ids: Sequence[int]) -> Message:
        """A turn of the policy's as a message."""

    @abstractmethod
    def replies(self, episodes: Sequence[Episode]) -> list[list[Message]]:
        """What answers the latest turn of each; [] where the episode ends.

        An answer to an episode's last turn is not appended. `ended` is taken back of an episode
        that does not end by itself.
        """


class Nobody(Outside):
    """Every episode is one turn."""

    def read(self, ids: Sequence[int]) -> Message:
        return {"role": "assistant"}

    def replies(self, episodes: Sequence[Episode]) -> list[list[Message]]:
        return [[] for _ in episodes]


class Reader(NamedTuple):
    """Ids of a turn -> what was said; stop tokens are no part of it."""

    tokenizer: Any
    stop_ids: frozenset[int]

    def text(self, ids: Sequence[int], special: bool) -> str:
        """Args:
        special: with the control tokens that mark thoughts and calls.
        """
        kept = [token for token in ids if token not in self.stop_ids]
        return str(
            self.tokenizer.decode(
                kept, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        )


class Tools(Outside):
    """Runs the tools that a turn calls; a turn that calls none ends the episode."""

    def __init__(self, toolbox: Toolbox, between: Between, reader: Reader, form: CallFormat):
        self.toolbox, self.between, self.reader, self.form = toolbox, between, reader, form

    def read(self, ids: Sequence[int]) -> Message:
        text = self.reader.text(ids, special=True)
        return read_answer(text, self.form, self.toolbox.schemas)

    def replies(self, episodes: Sequence[Episode]) -> list[list[Message]]:
        for episode in episodes:
            episode.ended = episode.ended and not (episode.last and _calls(episode))
        called = [[] if episode.last else _calls(episode) for episode in episodes]
        outcomes = iter(self.toolbox.run([call for calls in called for call in calls]))
        found = []
        for episode, calls in zip(episodes, called, strict=True):
            answers = [(call, next(outcomes)) for call in calls]
            episode.calls += len(calls)
            episode.failures += sum(outcome.failed for _, outcome in answers)
            episode.seconds += sum(outcome.seconds for _, outcome in answers)
            found.append([result(call, outcome.text) for call, outcome in answers])
        return found


def tools_of(renderer: Renderer, stop_ids: Collection[int], toolbox: Toolbox) -> Tools:
    """Tools in the way that a template shows, calls and answers them.

    Raises:
        ConfigError: it does not, or its calls cannot be read.
    """
    path = renderer.tokenizer.name_or_path
    if not renderer.writes_tools:
        raise ConfigError(
            f"tools: the chat template of {path!r} writes no tools. Use a model whose template "
            "does, or set tokenizer.chat_template."
        )
    if problem := control_problem([], toolbox.schemas, renderer.control):
        raise ConfigError(problem)
    try:
        form, between = format_of(renderer), between_turns(renderer, stop_ids, toolbox.schemas)
    except ModelError as error:
        raise ConfigError(f"tools: with the chat template of {path!r}: {error}") from error
    return Tools(toolbox, between, Reader(renderer.tokenizer, frozenset(stop_ids)), form)


def _calls(episode: Episode) -> list[Any]:
    return list(episode.said[-1].get("tool_calls") or ())


class Environments(Outside):
    """An environment of its own for each episode: `reset(row)`, then `step(text)` after each turn.

    Args:
        factory: makes one. `reset` takes the row, its prompt and its other columns; `step` returns
            (messages that answer, reward of the turn, whether the episode is done). Both may be
            `async`.
        timeout: seconds for a step; None is no limit.
    """

    def __init__(
        self,
        factory: Callable[[], Any],
        between: Between,
        reader: Reader,
        timeout: float | None = None,
    ):
        self.factory, self.between, self.reader, self.timeout = factory, between, reader, timeout

    def begin(self, episodes: Sequence[Episode]) -> None:
        for episode in episodes:
            episode.environment = checked_environment(self.factory())
        resets = [partial(e.environment.reset, dict(e.row)) for e in episodes]
        found = self._all(episodes, resets, "reset")
        for episode, returned in zip(episodes, found, strict=True):
            if returned is not None:
                raise _problem(
                    episode, f"reset() returned {kind_of(returned)}; the prompt is the row's, so "
                    "it must return None."
                )  # fmt: skip

    def read(self, ids: Sequence[int]) -> Message:
        (message,) = normal([{"role": "assistant", "content": self.reader.text(ids, False)}])
        return {key: value for key, value in message.items() if key != "around"}

    def replies(self, episodes: Sequence[Episode]) -> list[list[Message]]:
        texts = [self.reader.text(e.segments[-1].ids, special=False) for e in episodes]
        steps = [partial(e.environment.step, t) for e, t in zip(episodes, texts, strict=True)]
        found = []
        for episode, returned in zip(episodes, self._all(episodes, steps, "step"), strict=True):
            messages, reward, done = _checked(episode, returned)
            episode.credit(reward)
            episode.ended = episode.ended and done
            found.append([] if done else list(messages))
        return found

    def _all(
        self, episodes: Sequence[Episode], calls: Sequence[Callable[[], Any]], name: str
    ) -> list[Any]:
        """What each episode's environment returns, side by side.

        Raises:
            RewardError: one failed; it names the row.
        """
        found = settled(calls, self.timeout)
        for episode, one in zip(episodes, found, strict=True):
            if isinstance(one.error, OutOfTime):
                raise _problem(episode, f"{name}() was not done after {self.timeout:g} seconds.")
            if one.error is not None:
                kind = type(one.error).__name__
                raise _problem(episode, f"{name}() raised {kind}: {one.error}") from one.error
        return [one.value for one in found]


def checked_environment(environment: Any) -> Any:
    """What a factory made.

    Raises:
        ConfigError: it lacks a method.
    """
    missing = [n for n in ("reset", "step") if not callable(getattr(environment, n, None))]
    if missing:
        raise ConfigError(
            f"environment_factory made {kind_of(environment)}, which has no {missing[0]}(). An "
            "environment has reset(row) and step(text) -> (messages, reward, done); functions that "
            "a model calls are given as tools=[...]."
        )
    return environment


def _checked(episode: Episode, returned: Any) -> Step:
    """What `step` returned.

    Raises:
        RewardError: something else than messages, a finite reward and whether it is done.
    """
    if not (isinstance(returned, tuple) and len(returned) == 3):
        raise _problem(
            episode, f"step() returned {kind_of(returned)}, expected (messages, reward, done)."
        )
    messages, reward, done = returned
    if not isinstance(reward, Real) or not math.isfinite(reward):
        raise _problem(episode, f"step() gave the reward {reward!r}, expected a finite number.")
    if not done and (problem := _message_problem(messages)):
        raise _problem(episode, f"step() gave messages that cannot follow: {problem}")
    return messages, float(reward), bool(done)


def _message_problem(messages: Any) -> str:
    if not isinstance(messages, list | tuple) or not messages:
        return f"expected a list with at least one; found {kind_of(messages)}."
    if not all(isinstance(message, Mapping) for message in messages):
        return f"each must be a message such as {{'role': 'user', ...}}; found {messages!r}."
    roles = [message.get("role") for message in messages]
    if not set(roles) <= {"user", "tool"}:
        return f"their roles must be 'user' or 'tool'; found {roles}."
    wrong = [m.get("content") for m in messages if not isinstance(m.get("content"), str)]
    return f"'content' must be a text; found {kind_of(wrong[0])}." if wrong else ""


def _problem(episode: Episode, problem: str) -> RewardError:
    kind, row = type(episode.environment).__name__, episode.row.get("row")
    return RewardError(f"environment {kind}, row {row}: {problem}")
