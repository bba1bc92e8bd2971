"""What every trainer's call accepts about answers that the policy writes in evaluations."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from main.evaluation.named import SCORES, unknown_names
from main.options import Options, below

PREFIX = "generated/"  # of the scores' names in records


@dataclass(kw_only=True)
class GeneratedOptions(Options):
    """Answers at each evaluation: the likeliest ones, as a predictor would give them.

    eval_generate: how many evaluation rows the policy answers before the first step and at each
        evaluation, always the same ones, spread over the set by the seed; 0 is none. Scores are
        `generated/<name>` in results and records, the answers before and after in generated.csv.
    eval_metrics: names of scores ('exact', 'bleu', 'chrf', 'ter', 'rouge-1', 'rouge-2', 'rouge-l',
        'meteor'), or functions, see main/trainer/generated/scores.py.
    eval_max_new_tokens: most tokens of an answer.
    """

    eval_generate: int = 0
    eval_metrics: list | tuple | str | Callable = field(
        default_factory=lambda: ["exact", "rouge-l"]
    )
    eval_max_new_tokens: int = 256

    def problems(self) -> list[str]:
        found = below(self, {"eval_generate": 0, "eval_max_new_tokens": 1})
        names = self.score_names
        found += [f"eval_metrics: {problem}" for problem in unknown_names(names)]
        found += [
            f"eval_metrics names {name!r} twice."
            for name in dict.fromkeys(names)
            if names.count(name) > 1
        ]
        found += [
            f"eval_metrics holds {metric!r}, which is neither the name of a score nor a function."
            for metric in self.metrics
            if not (isinstance(metric, str) or callable(metric))
        ]
        return found if self.metrics else [*found, "eval_metrics is empty: name at least one."]

    def without_effect(self) -> dict[str, str]:
        if self.eval_generate:
            return {}
        return dict.fromkeys(("eval_metrics", "eval_max_new_tokens"), "eval_generate=0")

    @property
    def metrics(self) -> list[Any]:
        """Names and functions, in the order in which they were given."""
        given = self.eval_metrics
        return list(given) if isinstance(given, list | tuple) else [given]

    @property
    def score_names(self) -> list[str]:
        return [metric for metric in self.metrics if isinstance(metric, str)]

    @property
    def metric_functions(self) -> list[Any]:
        return [metric for metric in self.metrics if not isinstance(metric, str)]


def higher_is_better(metric: str) -> bool | None:
    """Of a score of answers, by its key in the records; None for what is no such score.

    What a function gives is read as a reward: more is better.
    """
    if not metric.startswith(PREFIX):
        return None
    known = SCORES.get(metric.removeprefix(PREFIX))
    return known is None or known.higher_is_better
