"""METEOR (Banerjee and Lavie 2005) without WordNet: exact and stem matches, no synonyms.

nltk looks synonyms up in a corpus that has to be downloaded; here it gets a stand-in that knows
none, so that the number is the same on every machine.
"""

from collections.abc import Sequence

import nltk
from nltk.translate.meteor_score import meteor_score


class NoSynonyms:
    """In place of nltk's WordNet reader."""

    def synsets(self, word: str) -> list[object]:
        return []


def meteor(references: Sequence[Sequence[str]], generated: Sequence[str]) -> float:
    """The score (0 to 1) against the best reference; nltk's alpha 0.9, beta 3, gamma 0.5.

    Args:
        references: tokens of each reference.
        generated: tokens of the generated text.
    """
    return float(meteor_score(references, generated, wordnet=NoSynonyms()))


def meteor_signature(unit: str) -> str:
    """How the number was made; `unit` says what a token is."""
    return (
        f"multiref:best|unit:{unit}|match:exact+stem|wordnet:none|alpha:0.9|beta:3|gamma:0.5|"
        f"mean:rows|nltk:{nltk.__version__}"
    )
