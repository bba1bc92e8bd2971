"""Over-long dialogues: the oldest exchanges go first, then the end of the answer; never the prompt.

An exchange is a user turn with all that follows up to the next user turn. The system turn stays.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from main.dialogue.accounts import Dialogue
from main.dialogue.drafts import Which
from main.dialogue.messages import SYSTEM_ROLES
from main.dialogue.template import ChatTemplate
from main.dialogue.tokens import Encoded
from main.loaders.report import Fate


class Answers(NamedTuple):
    """Several answers to one prompt.

    prompt_ids: what all of them begin with.
    completion_ids: one list an answer, its end token included.
    """

    prompt_ids: list[int]
    completion_ids: list[list[int]]


def fit(
    encoded: Encoded,
    dialogue: Dialogue,
    template: ChatTemplate,
    max_length: int | None,
    which: Which = "all",
) -> tuple[Encoded | None, Fate]:
    """A dialogue within `max_length` tokens (None = unlimited), and what that took.

    Args:
        which: of its turns are trained; see `ChatTemplate.encode`.

    Returns:
        (encoded, ''), (encoded, 'shortened'), (encoded, 'cut'), (encoded, 'both'), or
        (None, 'skipped') when no trained token is left.
    """
    if max_length is None or len(encoded.input_ids) <= max_length:
        return encoded, ""
    answers = sum(m["role"] == "assistant" for m in dialogue.messages)
    last = dialogue
    for last, removed in _shorter(dialogue):
        # Not rendered while all that stands before it, left out, would not make the room.
        before = encoded.turns[removed - 1][1] if len(encoded.turns) == answers else 0
        if before and len(encoded.input_ids) - before > max_length:
            continue
        shorter = template.encode(last, which)
        if len(shorter.input_ids) <= max_length and any(shorter.loss_mask):
            return shorter, "shortened"
    if last is dialogue:
        return _cut(encoded, max_length)
    cut, fate = _cut(template.encode(last, which), max_length)
    return cut, "both" if fate == "cut" else fate


def encode_answers(
    dialogue: Dialogue, answers: Sequence[str], template: ChatTemplate, max_length: int | None
) -> tuple[Answers | None, Fate]:
    """Encode a prompt with each of several answers, prompt + longest answer within `max_length`.

    Raises:
        DataError: a string that the template does not write.
    """
    result = _join(dialogue, answers, template)
    if max_length is None or _longest(result) <= max_length:
        return result, ""
    fate: Fate = "cut"
    for kept, _ in _shorter(dialogue):
        result = _join(kept, answers, template)
        if _longest(result) <= max_length:
            return result, "shortened"
        fate = "both"
    room = max_length - len(result.prompt_ids)
    if room <= 0:
        return None, "skipped"
    return Answers(result.prompt_ids, [ids[:room] for ids in result.completion_ids]), fate


def fit_prompt(
    dialogue: Dialogue, template: ChatTemplate, max_length: int | None
) -> tuple[list[int] | None, Fate]:
    """Ids of a prompt that leaves room for at least one token within `max_length`."""
    ids = template.encode_prompt(*dialogue)
    if max_length is None or len(ids) < max_length:
        return ids, ""
    for kept, _ in _shorter(dialogue):
        ids = template.encode_prompt(*kept)
        if len(ids) < max_length:
            return ids, "shortened"
    return None, "skipped"


def _shorter(dialogue: Dialogue) -> Iterator[tuple[Dialogue, int]]:
    """(the dialogue without its oldest exchanges, assistant turns removed), down to one."""
    messages = dialogue.messages
    head = [m for m in messages[:1] if m["role"] in SYSTEM_ROLES]
    users = [i for i, m in enumerate(messages) if m["role"] == "user"]
    for first in users[1:]:
        removed = sum(m["role"] == "assistant" for m in messages[:first])
        yield dialogue._replace(messages=[*head, *messages[first:]]), removed


def _cut(encoded: Encoded, max_length: int) -> tuple[Encoded | None, Fate]:
    # The tokens of an image are whole or not there.
    end = min([max_length, *(i.start for i in encoded.images if i.start < max_length < i.end)])
    ids, mask = encoded.input_ids[:end], encoded.loss_mask[:end]
    turns = [(a, min(b, end)) for a, b in encoded.turns if a < end]
    images = [image for image in encoded.images if image.end <= end]
    weights = encoded.weights[: len(turns)]
    return (Encoded(ids, mask, turns, images, weights), "cut") if any(mask) else (None, "skipped")


def _longest(answers: Answers) -> int:
    return len(answers.prompt_ids) + max(map(len, answers.completion_ids))


def _join(dialogue: Dialogue, answers: Sequence[str], template: ChatTemplate) -> Answers:
    dialogues = [
        dialogue._replace(messages=[*dialogue.messages, {"role": "assistant", "content": answer}])
        for answer in answers
    ]
    encoded = template.encode_batch(dialogues, "last")
    prompt_ids = template.encode_prompt(*dialogue)
    return Answers(prompt_ids, [e.input_ids[slice(*e.turns[-1])] for e in encoded])
