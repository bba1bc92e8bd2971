"""Between the requests of a call and the episodes that `Predictor.run` plays."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch

from main.dialogue.accounts import Dialogue
from main.dialogue.episodes import Drawn, Episode
from main.errors import ConfigError
from main.predictor.call import Call
from main.predictor.decoding import Decoding
from main.types import PlayedDialogue

_OF_ONE_TURN = ("assistant_prefix", "stop", "skip_special_tokens")


class Requests(NamedTuple):
    """Those of a call, checked and rendered; dialogues: of each row, none where text was given."""

    rows: list[Decoding]
    call: Call
    dialogues: list[Dialogue]


def checked_rounds(rounds: int, timeout: float | None) -> int:
    """How often tools may answer.

    Raises:
        ConfigError: never, or within no time.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"max_tool_calling_iterations={rounds!r} must be a number >= 1.")
    if timeout is not None and not timeout > 0:
        raise ConfigError(f"tool_timeout={timeout!r} must be > 0, or None for no limit.")
    return rounds


def refuse_of_one_turn(options: Mapping[str, Any]) -> None:
    """What shapes the text of one answer has no meaning for a dialogue."""
    given = [name for name in _OF_ONE_TURN if name in options]
    if given:
        raise ConfigError(
            f"{given} shape the text of one answer, and run() plays a dialogue of several turns: "
            "leave them out. stop_token_ids end a turn here too."
        )


def episode_of(row: Decoding, dialogue: Dialogue) -> Episode:
    """Before its first turn; its seed is that of the answer that `__call__` would give."""
    seed = None if row.generator is None else row.generator.initial_seed()
    return Episode(dialogue, row.prompt_ids, seed, visuals=row.visuals)


def row_of(index: int, episode: Episode, limit: int) -> Decoding:
    """What the decoder works on for the next turn."""
    seed = episode.turn_seed
    generator = None if seed is None else torch.Generator().manual_seed(seed % 2**63)
    return Decoding(index, episode.ids, limit, generator, visuals=episode.visuals)


def drawn_of(row: Decoding) -> Drawn:
    """The turn of a finished row."""
    end = [] if row.stop_id is None else [row.stop_id]
    return Drawn([*row.completion_ids, *end], (), bool(end))


def played(episode: Episode, rounds: int) -> PlayedDialogue:
    """What the caller gets of an episode at its end, after at most so many answers of tools."""
    last = episode.said[-1]
    calls = last.get("tool_calls") and episode.rounds >= rounds
    cut: Literal["length", "rounds"] = "rounds" if calls else "length"
    return PlayedDialogue(
        [dict(message) for message in (*episode.dialogue.messages, *episode.said)],
        str(last.get("content") or ""),
        episode.ids,
        [False] * len(episode.prompt_ids) + episode.drawn,
        "stop" if episode.ended else cut,
    )
