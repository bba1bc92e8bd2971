"""Over-long dialogues: the oldest exchanges go first, then the end of the answer; never the prompt.

An exchange is a user turn with all that follows up to the next user turn. The system turn stays.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from main.errors import DataError
from main.loaders.report import Fate
from main.loaders.spans import Messages
from main.loaders.template import ChatTemplate
from main.loaders.tokens import Encoded


class Answers(NamedTuple):
    """Several answers to one prompt.

    prompt_ids: what all of them begin with.
    completion_ids: one list an answer, its end token included.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]


def fit(
    encoded: Encoded, messages: Messages, template: ChatTemplate, max_length: int | None
) -> tuple[Encoded | None, Fate]:
    """A dialogue within `max_length` tokens (None = unlimited), and what that took.

    Returns:
        (encoded, ''), (encoded, 'shortened'), (encoded, 'cut'), or (None, 'skipped') when no
        trained token is left.
    """
    if max_length is None or len(encoded.input_ids) <= max_length:
        return encoded, ""
    last = messages
    for last, removed in _shorter(messages):
        # Not rendered while all that stands before it, left out, would not make the room.
        if len(encoded.input_ids) - encoded.turns[removed - 1][1] > max_length:
            continue
        shorter = template.encode(last)
        if len(shorter.input_ids) <= max_length:
            return shorter, "shortened"
    return _cut(encoded if last is messages else template.encode(last), max_length)


def encode_answers(
    messages: Messages, answers: Sequence[str], template: ChatTemplate, max_length: int | None
) -> tuple[Answers | None, Fate]:
    """Encode a prompt with each of several answers, prompt + longest answer within `max_length`.

    Raises:
        DataError: the template writes the prompt differently for different answers.
    """
    result = _join(messages, answers, template)
    if max_length is None or _longest(result) <= max_length:
        return result, ""
    for kept, _ in _shorter(messages):
        result = _join(kept, answers, template)
        if _longest(result) <= max_length:
            return result, "shortened"
    room = max_length - len(result.prompt_ids)
    if room <= 0:
        return None, "skipped"
    return Answers(result.prompt_ids, [ids[:room] for ids in result.completion_ids]), "cut"


def fit_prompt(
    messages: Messages, template: ChatTemplate, max_length: int | None
) -> tuple[list[int] | None, Fate]:
    """Ids of a prompt that leaves room for at least one token within `max_length`."""
    ids = template.encode_prompt(messages)
    if max_length is None or len(ids) < max_length:
        return ids, ""
    for kept, _ in _shorter(messages):
        ids = template.encode_prompt(kept)
        if len(ids) < max_length:
            return ids, "shortened"
    return None, "skipped"


def _shorter(messages: Messages) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """(messages without the oldest exchanges, assistant turns removed), down to one exchange."""
    head = [m for m in messages[:1] if m["role"] == "system"]
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    for first in users[1:]:
        removed = sum(m["role"] == "assistant" for m in messages[:first])
        yield [*head, *messages[first:]], removed


def _cut(encoded: Encoded, max_length: int) -> tuple[Encoded | None, Fate]:
    # The tokens of an image are whole or not there.
    end = min([max_length, *(i.start for i in encoded.images if i.start < max_length < i.end)])
    ids, mask = encoded.input_ids[:end], encoded.loss_mask[:end]
    turns = [(a, min(b, end)) for a, b in encoded.turns if a < end]
    images = [image for image in encoded.images if image.end <= end]
    return (Encoded(ids, mask, turns, images), "cut") if any(mask) else (None, "skipped")


def _longest(answers: Answers) -> int:
    return len(answers.prompt_ids) + max(map(len, answers.completion_ids))


def _join(messages: Messages, answers: Sequence[str], template: ChatTemplate) -> Answers:
    dialogues = [[*messages, {"role": "assistant", "content": answer}] for answer in answers]
    encoded = template.encode_batch(dialogues)
    start = min(e.turns[-1][0] for e in encoded)
    prompt_ids = encoded[0].input_ids[:start]
    if any(e.input_ids[:start] != prompt_ids for e in encoded):
        raise DataError("the chat template writes the conversation differently for its answers.")
    return Answers(prompt_ids, [e.input_ids[start : e.turns[-1][1]] for e in encoded])
