"""Scores of answers, by name (main/evaluation/named.py) or by functions of the user.

A function is called once with all answers, and returns one number for each, or None where it does
not apply. Its score is the mean. As a reward function it takes by name what it wants of

    generated       the answers, as texts
    references      of each the texts that it is compared with
    prompts, completions, completion_ids, trainer_state, log_metric, log_extra, and every column of
    the rows: see main/trainer/rewards/functions.py. Rows without columns have `answer`: the
    reference, or a list of several.

so that every reward function is a metric. Prompts and completions are text where the encoded rows
hold no messages, as in SFT and DPO.

    def brief(generated, references):
        return [float(len(text) <= len(gold[0])) for text, gold in zip(generated, references)]

    trainer(eval_generate=64, eval_metrics=["exact", brief])
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from main.evaluation.named import Scored, named_scores
from main.options import raise_all
from main.trainer.generated.asked import Asked, reference_problems
from main.trainer.generated.options import PREFIX, GeneratedOptions
from main.trainer.loop.records import mean_of
from main.trainer.rewards.calling import Patience, call_all
from main.trainer.rewards.functions import numbers, unique_names
from main.trainer.rewards.notes import Notes, TrainerState
from main.trainer.rewards.scoreable import Scoreable, as_completion

OURS = ("generated", "references")


class Written(NamedTuple):
    """An answer.

    text: as a predictor shows it. ids: its tokens, the end token among them if it `ended`.
    """

    text: str
    ids: list[int]
    ended: bool


class Judged(NamedTuple):
    """What the answers are worth.

    scores: name without prefix -> a score of all answers and those of each.
    notes: what the functions logged.
    """

    scores: dict[str, Scored]
    notes: Notes


class Judges:
    """Scores answers to chosen rows.

    Raises:
        ConfigError: a name that is taken, or rows that give nothing to compare with.
    """

    def __init__(self, options: GeneratedOptions, asked: Sequence[Asked]):
        self.asked, self.names = asked, options.score_names
        functions = options.metric_functions
        self.functions = dict(zip(unique_names(functions), functions, strict=True))
        raise_all(self._problems() + reference_problems(asked, self.names))

    def _problems(self) -> list[str]:
        taken = [*self.names, "ended"]
        found = [
            f"eval_metrics has a function {name!r}, and there is a score of that name. Rename it."
            for name in self.functions
            if name in taken
        ]
        columns = {name for a in self.asked for name in a.columns if name in OURS}
        if self.functions and columns:
            found.append(
                f"evaluation rows have columns {sorted(columns)}, names under which functions in "
                "eval_metrics are given something else. Rename them in the data."
            )
        return found

    def judge(self, written: Sequence[Written], state: TrainerState) -> Judged:
        """All scores of the answers, one to each row.

        Raises:
            RewardError: a function raised, or returned something else than one finite number or
                None for each answer; it names the function.
        """
        texts, references = [w.text for w in written], [a.references for a in self.asked]
        scores = named_scores(self.names, references, texts) if self.names else {}
        what = self._scoreable(written)
        returned, notes = call_all(self.functions, what, state, Patience())
        for name, values in zip(self.functions, returned, strict=True):
            rows = numbers(f"{what.judge} '{name}'", values, what.rows)
            scores[name] = Scored(_mean(rows), rows)
        ended = [float(w.ended) for w in written]
        return Judged({**scores, "ended": Scored(_mean(ended), ended)}, notes)

    def _scoreable(self, written: Sequence[Written]) -> Scoreable:
        prompts: list[Any] = [asked.prompt for asked in self.asked]
        both = list(zip(self.asked, written, strict=True))
        return Scoreable(
            prompts,
            [as_completion(asked.prompt or "", answer.text) for asked, answer in both],
            [answer.ids for answer in (answer for _, answer in both)],
            [
                {**asked.columns, "generated": answer.text, "references": asked.references}
                for asked, answer in both
            ],
            [asked.row for asked in self.asked],
            judge="metric function",
        )


def metrics_of(judged: Judged) -> dict[str, float]:
    """Under the names that records and results have."""
    logged = mean_of([judged.notes.metrics])
    values = {name: scored.value for name, scored in judged.scores.items()}
    return {f"{PREFIX}{name}": value for name, value in {**values, **logged}.items()}


def names_of(options: GeneratedOptions) -> list[str]:
    """Those of the metrics, or patterns of them."""
    names = [*options.score_names, *unique_names(options.metric_functions), "ended", "logged/*"]
    return [f"{PREFIX}{name}" for name in names]


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
