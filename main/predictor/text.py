"""Completion ids -> text that may be shown: no half characters, nothing of a stop text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"  # what a decoder writes for bytes that are no character yet
_LONGEST = 4  # bytes of a character
_WINDOW = 32  # ids that are decoded again for every new one


class Answer:
    """The text of one completion as it grows.

    text: what may be shown so far; it only ever grows.
    stopped: a stop text came up; `text` ends before it.
    lead: blanks that the chat template puts before an answer, not part of it.
    begun: ids of the answer that stand in the prompt already.
    keep_special: show control tokens, which are left out otherwise.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop_texts: Sequence[str],
        lead: str = "",
        begun: Sequence[int] = (),
        keep_special: bool = False,
    ):
        self.tokenizer, self.stop_texts, self.lead = tokenizer, stop_texts, lead
        self.begun, self.keep_special = list(begun), keep_special
        self.text = ""
        self.stopped = False
        self._growing = _Growing(self._decode)

    def update(self, completion_ids: Sequence[int], finished: bool) -> str:
        """Decode all ids so far and return what is new in `text`.

        Until the completion is `finished`, the end is held back while it could still become
        another character or the beginning of a stop text.
        """
        if self.stopped:
            return ""
        ids = [*self.begun, *completion_ids]
        text = self._whole(ids) if finished else self._growing.text(ids).rstrip(HALF)
        text = "" if self.lead.startswith(text) else text.removeprefix(self.lead)
        cut = min((at for stop in self.stop_texts if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            text = text[:cut]
        elif not finished:
            text = text[: len(text) - _held_back(text, self.stop_texts)]
        return self._show(text, final=finished or self.stopped)

    def _whole(self, ids: list[int]) -> str:
        """The text of all ids but those of a character that the answer ends within.

        Where characters are written as single bytes, one that lacks its end spoils all before it.
        """
        for missing in range(_LONGEST):
            text = self._decode(ids[: len(ids) - missing])
            if not text.endswith(HALF):
                return text
        return self._decode(ids).rstrip(HALF)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids),
                skip_special_tokens=not self.keep_special,
                clean_up_tokenization_spaces=False,
            )
        )

    def _show(self, text: str, final: bool) -> str:
        if not (final or text.startswith(self.text)):
            return ""
        chunk = text[len(self.text) :]
        self.text += chunk
        return chunk


class _Growing:
    """The text of ids of which there are more at every call; what is settled is kept.

    `settled` is the text of ids[:end]; those from `begin` on are decoded again with what follows,
    because a token's text may depend on the one before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]):
        self.decode = decode
        self.settled, self.begin, self.end = "", 0, 0

    def text(self, ids: Sequence[int]) -> str:
        known = self.decode(ids[self.begin : self.end])
        whole = self.decode(ids[self.begin :])
        if not whole.startswith(known):
            return self.decode(ids)
        text = self.settled + whole[len(known) :]
        if len(ids) - self.end > _WINDOW and not text.endswith(HALF):
            self.settled, self.begin, self.end = text, self.end, len(ids)
        return text


def _held_back(text: str, stop_texts: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop text."""
    longest = max(map(len, stop_texts), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_texts):
            return length
    return 0
