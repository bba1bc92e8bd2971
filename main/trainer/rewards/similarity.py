"""The guide's reward: is a completion closer to a gold answer, or to a bad one, and how close?

    sim(c, a) = w0 * max(cos(c, a), 0) + w1 * jaccard(c, a)
    a* = argmax over gold and bad answers of sim(c, a)
    reward(c) = +sim(c, a*) if a* is a gold answer, -sim(c, a*) if it is a bad one

Decided here: jaccard compares the sets of token ids of the *encoder's* tokenizer, without special
tokens (any policy is then scored alike); two empty sets are equal, so 1; of a gold and a bad answer
that are equally like, the gold one decides. Texts are taken as they are, special tokens removed.
"""

import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from main.errors import ConfigError
from main.loaders.preference import listed

if TYPE_CHECKING:
    from main.models.encoder import SentenceEncoder


def jaccard(first: Collection[int], second: Collection[int]) -> float:
    """|A and B| / |A or B| of the distinct ids; 1 for two empty sets.

    >>> jaccard([1, 2, 2], [2, 3])
    0.3333333333333333
    """
    a, b = set(first), set(second)
    return len(a & b) / len(a | b) if a or b else 1.0


def similarity(cosine: float, overlap: float, weights: Sequence[float]) -> float:
    """w0 * max(cos, 0) + w1 * jaccard, between 0 and 1."""
    return weights[0] * max(cosine, 0.0) + weights[1] * overlap


def decide(gold: Sequence[float], bad: Sequence[float]) -> float:
    """The signed reward of a completion from its similarities to gold and bad answers.

    >>> decide([0.4, 0.6], [0.5]), decide([0.4], [0.5, 0.9]), decide([0.5], [0.5])
    (0.6, -0.9, 0.5)
    """
    best_gold, best_bad = max(gold, default=0.0), max(bad, default=0.0)
    return best_gold if best_gold >= best_bad else -best_bad


def weight_problems(weights: Sequence[float]) -> list[str]:
    """What is wrong with `weight_for_cos_and_jaccard`."""
    wanted = "weight_for_cos_and_jaccard={} must be two numbers from 0 to 1 that sum to 1{}."
    if len(weights) != 2 or not all(isinstance(w, int | float) and 0 <= w <= 1 for w in weights):
        return [wanted.format(list(weights), "")]
    if not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        return [wanted.format(list(weights), f", not to {sum(weights):g}")]
    return []


class SimilarityReward:
    """A reward function of the form `(prompts, completions, **columns) -> list[float]`.

    Args:
        encoder: whose cosine and whose token ids are compared.
        weights: of cosine and jaccard, summing to 1.
    """

    __name__ = "similarity"

    def __init__(self, encoder: "SentenceEncoder", weights: Sequence[float] = (0.5, 0.5)):
        problems = weight_problems(weights)
        if problems:
            raise ConfigError(problems[0])
        self.encoder, self.weights = encoder, tuple(weights)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        gold_answers: Sequence[str | list[str]],
        bad_answers: Sequence[str | list[str]],
        **columns: Any,
    ) -> list[float]:
        """From -1 to 1 for each completion, a string or a list with one assistant's message."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        rows = zip(texts, map(listed, gold_answers), map(listed, bad_answers), strict=True)
        return [
            decide(self.similarities(text, gold), self.similarities(text, bad))
            for text, gold, bad in rows
        ]

    def similarities(self, text: str, answers: Sequence[str]) -> list[float]:
        """sim of a text to each answer."""
        vectors = self.encoder.encode([text, *answers])
        cosines = (vectors[1:] @ vectors[0]).tolist()
        ids = self.encoder.token_ids(text)
        overlaps = [jaccard(ids, self.encoder.token_ids(answer)) for answer in answers]
        pairs = zip(cosines, overlaps, strict=True)
        return [similarity(cosine, overlap, self.weights) for cosine, overlap in pairs]
