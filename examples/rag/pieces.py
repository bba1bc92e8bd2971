"""A text -> pieces that a sentence encoder reads whole; it cuts the end off longer ones."""

from typing import Any

SHARED = 8  # a piece begins with this part (an eighth) of the one before it
SPARE = 4  # tokens of room: a piece may be cut into tokens a little otherwise than the whole text


def pieces(text: str, encoder: Any) -> list[str]:
    """The text itself where the encoder reads it whole, else parts that overlap, cut between words.

    Args:
        encoder: of sentence-transformers, with `max_seq_length` and a fast tokenizer.
    """
    tokens = encoder.tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    special = encoder.tokenizer.num_special_tokens_to_add()
    most = (encoder.max_seq_length or len(tokens["input_ids"]) + special) - special
    if len(tokens["input_ids"]) <= most:
        return [text]
    words = tokens.word_ids(0)
    return [
        text[tokens["offset_mapping"][first][0] : tokens["offset_mapping"][last - 1][1]]
        for first, last in spans(words, max(most - SPARE, 1))
    ]


def spans(words: list[int], most: int) -> list[tuple[int, int]]:
    """(first, last + 1) of stretches of at most `most` tokens that together hold all of them.

    They begin and end between words, except in a word that is longer than a stretch.

    >>> spans([0, 0, 1, 2, 2, 3], 3)
    [(0, 3), (3, 6)]
    """
    found, first = [], 0
    while True:
        last = _between_words(words, first, min(first + most, len(words)))
        found.append((first, last))
        if last == len(words):
            return found
        shared = _between_words(words, first, last - most // SHARED)
        first = shared if shared > first else last


def _between_words(words: list[int], first: int, end: int) -> int:
    """The last place up to `end` where a word begins; `end` where none does behind `first`."""
    place = end
    while first < place < len(words) and words[place] == words[place - 1]:
        place -= 1
    return place if place > first else end
