"""Completion ids -> text that may be shown: no half characters, nothing of a stop text."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = "\ufffd"  # what a decoder writes for bytes that are no character yet


class Answer:
    """The text of one completion as it grows.

    text: what may be shown so far; it only ever grows.
    stopped: a stop text came up; `text` ends before it.
    lead: blanks that the chat template puts before an answer, not part of it.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", stop_texts: Sequence[str], lead: str = ""
    ):
        self.tokenizer, self.stop_texts, self.lead = tokenizer, stop_texts, lead
        self.text = ""
        self.stopped = False

    def update(self, completion_ids: Sequence[int], finished: bool) -> str:
        """Decode all ids so far and return what is new in `text`.

        Until the completion is `finished`, the end is held back while it could still become
        another character or the beginning of a stop text.
        """
        if self.stopped:
            return ""
        text = self._decode(completion_ids)
        cut = min((at for stop in self.stop_texts if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            self.stopped = True
            text = text[:cut]
        elif not finished:
            text = text[: len(text) - _held_back(text, self.stop_texts)]
        return self._show(text, final=finished or self.stopped)

    def _decode(self, completion_ids: Sequence[int]) -> str:
        text = self.tokenizer.decode(
            list(completion_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = str(text).rstrip(HALF)
        return "" if self.lead.startswith(text) else text.removeprefix(self.lead)

    def _show(self, text: str, final: bool) -> str:
        if not (final or text.startswith(self.text)):
            return ""
        chunk = text[len(self.text) :]
        self.text += chunk
        return chunk


def _held_back(text: str, stop_texts: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins a stop text."""
    longest = max(map(len, stop_texts), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stop_texts):
            return length
    return 0
