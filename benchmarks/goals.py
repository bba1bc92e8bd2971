"""What is aimed at, and the newest figures beside it: the table at the end of `make bench`.

    python benchmarks/goals.py

Figures are read from benchmarks/results/; one that was made before the package last changed is
marked stale.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kept import RESULTS, is_stale
from prettytable import PrettyTable

Result = Mapping[str, Any]


class Goal(NamedTuple):
    """One line.

    figure: what is measured, from the result of a script. limit: at least that, or with `most` at
        most.
    """

    work: str
    script: str
    figure: Callable[[Result], float]
    limit: float
    most: bool = False

    def met(self, value: float) -> bool:
        return value <= self.limit if self.most else value >= self.limit


def over_ours(side: str, cost: str) -> Callable[[Result], float]:
    return lambda result: result["over_ours"][side][cost]


def of_theirs(side: str, cost: str) -> Callable[[Result], float]:
    return lambda result: 1 / result["over_ours"][side][cost]


def farthest(name: str) -> Callable[[Result], float]:
    """Of the settings the one that is farthest from 1."""
    return lambda result: max(abs(found[name] - 1) for found in result["settings"].values())


GOALS = [
    Goal("SFT float32, times as fast as TRL", "sft", over_ours("trl", "wall"), 3.5),
    Goal("SFT float32, TRL in our order", "sft", over_ours("trl_ordered", "wall"), 2.0),
    Goal("SFT float32, memory of TRL's", "sft", of_theirs("trl", "peak_mib"), 0.4, True),
    Goal("DPO, times as fast as TRL", "dpo", over_ours("trl", "wall"), 3.0),
    Goal("GRPO with transformers, time of TRL's", "grpo", of_theirs("trl", "wall"), 0.3, True),
    Goal(
        "vLLM predictor, of plain LLM.chat", "predictor_vllm",
        lambda result: result["of_plain_throughput"]["wall"]["median"], 0.97,
    ),
    Goal("plan, error of memory", "plan", farthest("memory_ratio"), 0.15, True),
    Goal("plan, error of time", "plan", farthest("time_ratio"), 0.15, True),
    Goal(
        "import main, seconds", "import_time",
        lambda result: result["imports"]["main"]["cpu"], 0.3, True,
    ),
]  # fmt: skip


def line(goal: Goal, result: Result | None) -> list[str]:
    """Goal, figure, verdict and where the figure is from."""
    aim = f"{'at most' if goal.most else 'at least'} {goal.limit:g}"
    try:
        value = goal.figure(result or {})
    except KeyError:
        return [goal.work, aim, "", "not measured", ""]
    at = (result or {}).get("origin", {}).get("commit", "unknown")
    verdict = "met" if goal.met(value) else "missed"
    return [goal.work, aim, f"{value:.2f}", verdict, f"{at}{', stale' if is_stale(at) else ''}"]


def table() -> str:
    """All goals as text."""
    found = PrettyTable(["work", "goal", "figure", "", "commit"])
    found.align = "l"
    for goal in GOALS:
        path = RESULTS / f"{goal.script}.json"
        result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        found.add_row(line(goal, result))
    return found.get_string()


if __name__ == "__main__":
    print(table())
