"""What TRL hands to a reward function beside the data: where the run is, and a place for notes.

    def right(completions, answer, trainer_state, log_metric, log_extra):
        found = [text.split()[-1] for text in completions]
        log_extra("found", found)                               # a column of the table of samples
        log_metric("numbers", sum(map(str.isdigit, found)))     # "logged/numbers" in the records
        bonus = 1 - trainer_state.global_step / trainer_state.max_steps

Rewards that change with the step are the same after a resume: the step is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from main.trainer.loop.task import Metrics


class TrainerState(NamedTuple):
    """Where a run is.

    global_step: optimizer steps made before these completions were drawn.
    max_steps: those of the whole run.
    """

    global_step: int = 0
    max_steps: int = 0


class Notes:
    """Collects what the functions say about one batch of completions; an error says what is wrong.

    metrics: 'logged/<name>' -> (sum, number of calls).
    columns: name -> one value for each completion.
    """

    def __init__(self, completions: int):
        self.completions = completions
        self.metrics: Metrics = {}
        self.columns: dict[str, list[Any]] = {}

    def log_metric(self, name: str, value: float) -> None:
        """Record a number; the mean over all calls is what the records show."""
        value = float(value)
        if not math.isfinite(value):
            raise ValueError(f"log_metric('{name}', {value}): the value must be a finite number.")
        total, count = self.metrics.get(f"logged/{name}", (0.0, 0))
        self.metrics[f"logged/{name}"] = (total + value, count + 1)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Show a value for each completion in the table of samples."""
        values = list(values)
        if len(values) != self.completions:
            raise ValueError(
                f"log_extra('{column}', ...) got {len(values)} values for {self.completions} "
                "completions: give one for each."
            )
        self.columns[column] = values

    def take(self, others: "Notes") -> None:
        """Add what another function said of the same completions."""
        for name, (total, count) in others.metrics.items():
            before, calls = self.metrics.get(name, (0.0, 0))
            self.metrics[name] = (before + total, calls + count)
        self.columns |= others.columns

    def of(self, completion: int) -> dict[str, Any]:
        """What the columns say of one completion."""
        return {column: values[completion] for column, values in self.columns.items()}


def noted_columns(notes: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Titles, and a row of cells for each completion's notes; '' where it has none of that name."""
    titles = list(dict.fromkeys(name for noted in notes for name in noted))
    return titles, [[noted.get(name, "") for name in titles] for noted in notes]
