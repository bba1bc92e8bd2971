"""Scores of answers to evaluation rows, with intervals where each row has a score of its own."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from main.utils.report.panels import SCORE
from main.utils.report.run import Run


class Score(NamedTuple):
    """A score of the newest evaluation.

    before: that of the model before training; low, high: 95% interval; None where not known.
    n: answers.
    """

    name: str
    value: float
    before: float | None
    low: float | None
    high: float | None
    n: int


def scores_of(run: Run) -> list[Score]:
    keys = [key for key in run.curves.get("eval", {}) if key.startswith(SCORE)]
    return [_score(run, key) for key in keys]


def _score(run: Run, key: str) -> Score:
    steps, values = run.points("eval", key)
    name = key.removeprefix(SCORE)
    rows = _rows(run, name)
    same = bool(rows) and math.isclose(sum(rows) / len(rows), values[-1], abs_tol=1e-6)
    low, high = interval(rows) if same else (None, None)
    before = values[0] if steps[0] == 0 and len(steps) > 1 else None
    return Score(name, values[-1], before, low, high, len(run.answers))


def _rows(run: Run, name: str) -> list[float]:
    """Of every answer; [] where one has none."""
    try:
        return [float(row[name]) for row in run.answers]
    except (KeyError, ValueError):
        return []


def interval(rows: Sequence[float]) -> tuple[float, float]:
    """95%: Wilson's of shares, else by resampling the rows."""
    from main.evaluation.intervals import of_clusters, wilson  # sacrebleu takes a second

    if set(rows) <= {0.0, 1.0}:
        found = wilson(sum(rows), len(rows))
    else:
        found = of_clusters(rows, [1] * len(rows))
    return found.low, found.high
