"""Small containers that the parts of the library hand to each other."""

from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

Role = Literal["system", "user", "assistant", "tool", "observation"]


class Message(TypedDict, total=False):
    """One turn of a conversation; `content` is text or a list of typed parts (images)."""

    role: Role
    content: str | list[dict[str, Any]]


class EpochResult(NamedTuple):
    """What a trainer yields after every epoch.

    epoch: the epoch just finished, counted from 1.
    train: means over the epoch, e.g. `loss` per trained token.
    eval: the same over the evaluation set; empty when none was evaluated.
    checkpoint: the directory just written, or None.
    step: optimizer steps taken so far, over all epochs.
    """

    epoch: int
    train: dict[str, float]
    eval: dict[str, float]
    checkpoint: Path | None
    step: int


class PlayedDialogue(NamedTuple):
    """What `Predictor.run` returns of a request.

    messages: the whole dialogue, the query and its history included; a history to go on from.
    text: the last answer.
    token_ids: of prompt, answers, calls and results, as the model read and wrote them.
    drawn: one for each of `token_ids`, whether the model wrote it.
    finish_reason: 'stop' = the model came to its end, 'length' = a limit of tokens cut the
        dialogue, 'rounds' = tools were called once more than they may be.
    """

    messages: list[dict[str, Any]]
    text: str
    token_ids: list[int]
    drawn: list[bool]
    finish_reason: Literal["stop", "length", "rounds"]


class ScoredAnswer(NamedTuple):
    """An answer with its tokens, as `predict_with_logprobs` returns it.

    text: the answer; a stop text and what follows it are not part of it.
    token_ids: all tokens generated, the end token among them.
    logprobs: one for each of `token_ids`, nats.
    finish_reason: 'stop' = an end token or a stop text came, 'length' = the limit cut the answer.
    tokens: their texts, of `main.predictor.openai`: most servers tell these, and no ids.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]
    tokens: list[str] | None = None
