"""Scores by name, as `eval_metrics` and other callers write them.

`exact` is the share of answers that are one of their references, 0 to 1; the others are those of
standard.py, on their own scales.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from main.options import nearest


class Named(NamedTuple):
    """A score that has a name.

    standard: what standard.py calls it; '' for `exact`.
    higher_is_better: which way is up.
    """

    standard: str
    higher_is_better: bool = True


SCORES: Mapping[str, Named] = {
    "exact": Named(""),
    "bleu": Named("BLEU"),
    "chrf": Named("chrF"),
    "ter": Named("TER", higher_is_better=False),
    "rouge-1": Named("ROUGE-1"),
    "rouge-2": Named("ROUGE-2"),
    "rouge-l": Named("ROUGE-L"),
    "meteor": Named("METEOR"),
}


class Scored(NamedTuple):
    """A score of a corpus of n answers.

    value: of all of them.
    rows: of each of them; empty for a score that is no mean over rows (bleu, chrf, ter).
    """

    value: float
    rows: Sequence[float]


def unknown_names(names: Sequence[str]) -> list[str]:
    """One sentence for every name that is no score's."""
    known = list(SCORES)
    return [
        f"there is no score {name!r}; there are {known}.{nearest(name.lower(), known)}"
        for name in names
        if name not in SCORES
    ]


def named_scores(
    names: Sequence[str], references: Sequence[Sequence[str]], generated: Sequence[str]
) -> dict[str, Scored]:
    """The named scores of n >= 1 answers.

    Args:
        names: keys of `SCORES`.
        references: of each answer, one or several.
        generated: the answers; an empty one counts.
    """
    found = {}
    if "exact" in names:
        hits = [float(is_exact(t, r)) for t, r in zip(generated, references, strict=True)]
        found["exact"] = Scored(sum(hits) / len(hits), hits)
    if wanted := {SCORES[name].standard: name for name in names if SCORES[name].standard}:
        from main.evaluation.standard import measured  # not needed to check a name

        for standard, measure in measured(references, generated, names=wanted).items():
            rows = [] if measure.of_corpus else measure.rows[:, 0].tolist()
            found[wanted[standard]] = Scored(measure.whole, rows)
    return {name: found[name] for name in names}


def is_exact(text: str, references: Sequence[str]) -> bool:
    """Whether a text is one of its references.

    White space at the ends and its amount inside, and full-width forms, make no difference.

    >>> is_exact(" by  Monday", ["on Tuesday", "by Monday"])
    True
    """
    return comparable(text) in map(comparable, references)


def comparable(text: str) -> str:
    """The text without what makes no difference to `is_exact`."""
    return " ".join(unicodedata.normalize("NFKC", text).split())
