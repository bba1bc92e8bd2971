"""Text -> token ids with exact borders between what is prompt and what is trained."""

import copy
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from main.errors import ModelError
from main.vision import Placed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Character spans (start, end) or token spans of the trained turns, in order, not overlapping.
Spans = list[tuple[int, int]]


class Encoded(NamedTuple):
    """A text as the model reads it.

    input_ids: token ids, T of them.
    loss_mask: T booleans, True = trained.
    turns: token spans [start, end) of the trained turns, in order.
    images: the images and videos among the tokens, in order.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    turns: Spans
    images: Sequence[Placed] = ()


class TextEncoder:
    """A private copy of a fast tokenizer: ids and offsets, never a special token added.

    The copy has no post-processor (it would add BOS a second time, and some trim the blanks
    off the offsets), no truncation and no padding, whatever the caller's tokenizer is set to.

    Raises:
        ModelError: the tokenizer is a slow one, which has no offsets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{type(tokenizer).__name__} is a slow tokenizer, which cannot say where a token "
                "stands in the text. Load a fast one: main.models.load_tokenizer(path) rebuilds "
                "ChatGLM's; other models need a tokenizer.json in their folder."
            )
        self._engine = copy.deepcopy(tokenizer.backend_tokenizer)  # type: ignore[attr-defined]
        self._engine.post_processor = None
        self._engine.no_truncation()
        self._engine.no_padding()
        added = tokenizer.added_tokens_decoder  # type: ignore[attr-defined]
        self.added_ids = frozenset(added)
        self.added = alternation(str(token) for token in added.values())
        self.special = alternation(str(token) for token in added.values() if token.special)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text."""
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(self, texts: Sequence[str], spans: Sequence[Spans]) -> list[Encoded]:
        """Token ids of every text, and which tokens lie in its character spans.

        A text is tokenised once, whole. Only where a token would reach over the start of a span
        (blanks on both sides of it merge) is the text cut there: the ids before the span
        are then the ids that the prompt has alone, as at inference.
        """
        encodings = self._engine.encode_batch(list(texts), add_special_tokens=False)
        return [
            self._place(text, encoding, text_spans)
            for text, encoding, text_spans in zip(texts, encodings, spans, strict=True)
        ]

    def _place(self, text: str, encoding, spans: Spans) -> Encoded:
        starts = [start for start, _ in encoding.offsets]
        cuts = [start for start, _ in spans if self._straddled(encoding, starts, start)]
        if cuts:
            return self._encode_cut(text, cuts, spans)
        return _masked(encoding.ids, starts, spans)

    def _straddled(self, encoding, starts: list[int], border: int) -> bool:
        before = bisect_left(starts, border) - 1
        if before < 0 or encoding.ids[before] in self.added_ids:
            return False
        return encoding.offsets[before][1] > border

    def _encode_cut(self, text: str, cuts: list[int], spans: Spans) -> Encoded:
        ids: list[int] = []
        starts: list[int] = []
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = self._engine.encode(text[begin:end], add_special_tokens=False)
            ids += piece.ids
            starts += [begin + start for start, _ in piece.offsets]
        return _masked(ids, starts, spans)


def _masked(ids: list[int], starts: list[int], spans: Spans) -> Encoded:
    """A token is trained when its first character lies in a span."""
    mask = [False] * len(ids)
    turns = [(bisect_left(starts, start), bisect_left(starts, end)) for start, end in spans]
    for begin, end in turns:
        mask[begin:end] = [True] * (end - begin)
    return Encoded(ids, mask, turns)


def alternation(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first; of no words, nothing."""
    ordered = sorted({word for word in words if word}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
