"""Text -> token ids with exact borders between what is prompt and what is trained."""

import copy
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from main.errors import ModelError
from main.vision import Placed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SEEN, _SHORT = 1024, 200  # texts whose ids are kept, and characters that they have at most
# Character spans (start, end) or token spans of the trained turns, in order, not overlapping.
Spans = list[tuple[int, int]]

_engines: deque[tuple[Any, str, Any]] = deque(maxlen=4)


class Encoded(NamedTuple):
    """A text as the model reads it.

    input_ids: token ids, T of them.
    loss_mask: T booleans, True = trained.
    turns: token spans [start, end) of the trained turns, in order.
    images: the images and videos among the tokens, in order.
    weights: what each turn counts in the loss; () = each 1.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    turns: Spans
    images: Sequence[Placed] = ()
    weights: Sequence[float] = ()

    @property
    def token_weights(self) -> list[float]:
        """T weights, 0 where nothing is trained; [] where every trained token counts 1."""
        if all(weight == 1 for weight in self.weights):
            return []
        found = [0.0] * len(self.input_ids)
        for (begin, end), weight in zip(self.turns, self.weights, strict=True):
            found[begin:end] = [weight] * (end - begin)
        return found


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
        self._engine = _engine_of(tokenizer)
        added = tokenizer.added_tokens_decoder  # type: ignore[attr-defined]
        self._seen: dict[str, list[int]] = {}
        self.added_ids = frozenset(added)
        self.added = alternation(str(token) for token in added.values())
        self.special = alternation(str(token) for token in added.values() if token.special)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of every text."""
        encodings = self._engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode(
        self,
        texts: Sequence[str],
        spans: Sequence[Spans],
        borders: Sequence[Sequence[int]] | None = None,
        plain: Sequence[Sequence[int]] | None = None,
    ) -> list[Encoded]:
        """Token ids of every text, and which tokens lie in its character spans.

        A text is tokenised once, whole. Only where the tokens before the start of a span would
        be others than without what follows (blanks on both sides merge, or a blank leaves its
        neighbours for the word after it) is the text cut there: the ids before the span are
        then the ids that the prompt has alone, as at inference.

        Args:
            borders: of each text, further places of which the same holds.
            plain: of each text, places that no token may cross.
        """
        encodings = self._engine.encode_batch(list(texts), add_special_tokens=False)
        borders, plain = borders or [()] * len(texts), plain or [()] * len(texts)
        return [
            self._place(*of_text)
            for of_text in zip(texts, encodings, spans, borders, plain, strict=True)
        ]

    def _place(
        self, text: str, encoding, spans: Spans, borders: Sequence[int], plain: Sequence[int]
    ) -> Encoded:
        starts = [start for start, _ in encoding.offsets]
        places = sorted({*borders, *(start for start, _ in spans)})
        cuts = [place for place in places if self._changed(text, encoding, starts, place)]
        if cuts or plain:
            return self._encode_cut(text, sorted({*cuts, *plain}), spans)
        return _masked(encoding.ids, starts, spans)

    def _changed(self, text: str, encoding, starts: list[int], border: int) -> bool:
        """Whether the tokens before the border depend on what follows it.

        Added tokens part a text, so that only what stands after the last of them is looked at.
        """
        end = bisect_left(starts, border)
        begin = end - 1
        while begin > 0 and encoding.ids[begin] not in self.added_ids:
            begin -= 1
        if begin < 0 or (begin == end - 1 and encoding.ids[begin] in self.added_ids):
            return False
        if encoding.offsets[end - 1][1] > border:
            return True
        alone = self._alone(text[starts[begin] if begin else 0 : border])
        return alone != encoding.ids[begin:end]

    def _alone(self, text: str) -> list[int]:
        """Ids of a short text that comes again and again, such as "<|im_start|>assistant\n"."""
        if len(text) > _SHORT:
            return self._engine.encode(text, add_special_tokens=False).ids
        if text not in self._seen:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen[text] = self._engine.encode(text, add_special_tokens=False).ids
        return self._seen[text]

    def _encode_cut(self, text: str, cuts: list[int], spans: Spans) -> Encoded:
        ids: list[int] = []
        starts: list[int] = []
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            piece = self._engine.encode(text[begin:end], add_special_tokens=False)
            ids += piece.ids
            starts += [begin + start for start, _ in piece.offsets]
        return _masked(ids, starts, spans)


def _engine_of(tokenizer: "PreTrainedTokenizerBase") -> Any:
    """The copy of a backend, kept for the last few: a large vocabulary takes a second."""
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    state = repr((backend.normalizer, backend.pre_tokenizer, tokenizer.added_tokens_decoder))
    for known, known_state, engine in _engines:
        if known is backend and known_state == state:
            return engine
    engine = copy.deepcopy(backend)
    engine.post_processor = None
    engine.no_truncation()
    engine.no_padding()
    _engines.append((backend, state, engine))
    return engine


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
