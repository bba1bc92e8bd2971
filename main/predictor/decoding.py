"""The rows of a batch that is being decoded, and how they are grouped."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from main.predictor.sampling import Ngrams

LIKE_LENGTH = 0.9  # prompts of one prefill group: the shortest is at least this of the longest


@dataclass
class Decoding:
    """One prompt and the answer so far.

    index: position among the caller's requests.
    limit: tokens that may be generated, within the model's context.
    generator: source of this row's random numbers; None for greedy decoding.
    completion_ids: tokens generated so far, a stop token not among them.
    stop_id: the stop token that ended the answer; None while it goes on or if it was cut.
    logprobs: of `completion_ids` and then `stop_id`, where `decode` was asked for them.
    visuals: the images and videos whose tokens stand in `prompt_ids`, in order.
    """

    index: int
    prompt_ids: list[int]
    limit: int
    generator: torch.Generator | None = None
    completion_ids: list[int] = field(default_factory=list)
    finished: bool = False
    stop_id: int | None = None
    logprobs: list[float] = field(default_factory=list)
    visuals: Sequence[Any] = ()
    ngrams: Ngrams | None = None  # of no_repeat_ngram_size, made when first asked

    @property
    def length(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def banned(self, n: int) -> list[int]:
        """Tokens that would repeat a sequence of n tokens."""
        self.ngrams = self.ngrams or Ngrams(n)
        return self.ngrams.banned(self.prompt_ids + self.completion_ids)

    def add(self, token: int, stop_ids: Collection[int]) -> None:
        """Take the next token; a stop token or the limit finishes the row."""
        if token in stop_ids:
            self.finished, self.stop_id = True, token
            return
        self.completion_ids.append(token)
        self.finished = len(self.completion_ids) >= self.limit


def batches(rows: Sequence[Decoding], max_rows: int, max_tokens: int) -> list[list[Decoding]]:
    """Rows of like length together, longest first, so that memory runs out early or never.

    A batch holds at most `max_rows` rows, and rows x (longest prompt + largest limit), what its
    cache may grow to, stays within `max_tokens`; a single row may exceed that.
    """
    cut: list[list[Decoding]] = []
    width = 0
    for row in sorted(rows, key=lambda row: -len(row.prompt_ids)):
        need = max(width, len(row.prompt_ids) + row.limit)
        if not cut or len(cut[-1]) >= max_rows or need * (len(cut[-1]) + 1) > max_tokens:
            cut.append([])
            need = len(row.prompt_ids) + row.limit
        cut[-1].append(row)
        width = need
    return cut


def like_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut descending lengths into (start, end) groups that padding makes at most 1/9 longer.

    >>> like_lengths([100, 95, 60, 55, 10])
    [(0, 2), (2, 4), (4, 5)]
    """
    groups: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        if groups and length >= LIKE_LENGTH * lengths[groups[-1][0]]:
            groups[-1] = (groups[-1][0], i + 1)
        else:
            groups.append((i, i + 1))
    return groups
