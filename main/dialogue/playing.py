"""The one loop of rollouts and predictors: draw, read, answer, append, draw again.

for every episode that goes on:   the policy draws a turn
                                  it is read: text, thoughts, calls
                                  the outside answers: results of tools, an environment
                                  the answer is appended, as ids of the template's own text
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from main.dialogue.episodes import Drawn, Episode, Message
from main.dialogue.outside import Outside

Draw = Callable[[Sequence[Episode], Sequence[int]], Sequence[Drawn]]


class Limits(NamedTuple):
    """How far an episode may go; None is no limit.

    completion: tokens after the prompt, drawn and added. turn: tokens of a turn.
    context: tokens in all. rounds: how often the outside may answer.
    seconds: since the first draw; then no further turn begins.
    """

    completion: int | None = None
    turn: int | None = None
    context: int | None = None
    rounds: int | None = None
    seconds: float | None = None

    def room(self, episode: Episode, added: int = 0) -> int:
        """Tokens that its next turn may have, behind so many more; below 1 there is none."""
        used = len(episode.completion_ids) + added
        given = [
            self.turn,
            None if self.completion is None else self.completion - used,
            None if self.context is None else self.context - len(episode.prompt_ids) - used,
        ]
        return min((limit for limit in given if limit is not None), default=2**31)

    def end(self, episode: Episode, seconds: float) -> bool:
        """Whether no turn may follow the latest one, after so many seconds."""
        late = self.seconds is not None and seconds > self.seconds
        return late or (self.rounds is not None and episode.rounds >= self.rounds)


def play(episodes: Sequence[Episode], draw: Draw, outside: Outside, limits: Limits) -> None:
    """Play every episode to its end.

    Args:
        draw: (episodes, tokens that the turn of each may have) -> their turns.
    """
    start, going = time.monotonic(), list(episodes)
    outside.begin(going)
    while going:
        turns = draw(going, [limits.room(episode) for episode in going])
        seconds = time.monotonic() - start
        for episode, drawn in zip(going, turns, strict=True):
            episode.take(drawn, outside.read(drawn.ids))
            episode.last = not drawn.ended or limits.end(episode, seconds)
        replies = outside.replies(going)
        going = [
            episode
            for episode, reply in zip(going, replies, strict=True)
            if reply and _goes_on(episode, reply, outside, limits)
        ]


def _goes_on(episode: Episode, reply: Sequence[Message], outside: Outside, limits: Limits) -> bool:
    """Append the reply, unless that leaves no room for a turn: then the episode is cut."""
    assert outside.between is not None
    added = [] if episode.last else outside.between.ids(episode, reply)
    if episode.last or limits.room(episode, len(added)) < 1:
        episode.ended = False
        return False
    episode.add(reply, added)
    return True
