"""ROUGE (Lin 2004) of rouge_score, every digit of it; ROUGE-L in time that long texts allow."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import Tokenizer


class Rouge:
    """F values of a text.

    Args:
        orders: n of each ROUGE-n.
        tokenizer: text -> words.
    """

    def __init__(self, orders: Sequence[int], tokenizer: Tokenizer):
        self.kinds = {f"ROUGE-{n}": f"rouge{n}" for n in orders}
        self._scorer = RougeScorer(list(self.kinds.values()), tokenizer=tokenizer)
        self._tokenizer = tokenizer

    def score(self, reference: str, generated: str) -> dict[str, float]:
        """ROUGE-n of each order, and ROUGE-L."""
        scores = self._scorer.score(reference, generated)
        counted = {name: float(scores[kind].fmeasure) for name, kind in self.kinds.items()}
        words = self._tokenizer.tokenize
        return {**counted, "ROUGE-L": rouge_l(words(reference), words(generated))}


def rouge_l(reference: Sequence[str], generated: Sequence[str]) -> float:
    """F of the longest common subsequence, for lists of words."""
    if not (reference and generated):
        return 0.0
    common = longest_common_subsequence(reference, generated)
    return float(fmeasure(common / len(generated), common / len(reference)))


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Its length, bit-parallel (Hyyrö 2004, "Bit-parallel LCS-length computation revisited").

    >>> longest_common_subsequence("police", "polyce")
    5
    """
    masks: dict[str, int] = {}
    for place, word in enumerate(first):
        masks[word] = masks.get(word, 0) | 1 << place
    full = (1 << len(first)) - 1
    column = full  # bit i is 0 where the length grows from i to i + 1 words of `first`
    for word in second:
        matches = column & masks.get(word, 0)
        column = ((column + matches) | (column - matches)) & full
    return len(first) - column.bit_count()
