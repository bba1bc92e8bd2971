"""The table of goals: a figure is told with its verdict and its commit, and never without."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import goals  # noqa: E402 (a folder of scripts, no package)
import kept  # noqa: E402


def test_a_figure_is_met_missed_or_not_measured():
    goal = goals.Goal("work", "script", lambda result: result["ratio"], 2.0)
    here = {"commit": kept.commit()}
    assert goals.line(goal, {"ratio": 2.5, "origin": here})[:4] == [
        *("work", "at least 2", "2.50", "met"),
    ]
    assert goals.line(goal, {"ratio": 1.5, "origin": here})[3] == "missed"
    assert goals.line(goal, None)[3] == "not measured"
    fewest = goal._replace(most=True)
    assert goals.line(fewest, {"ratio": 1.5, "origin": here})[1:4] == ["at most 2", "1.50", "met"]


def test_a_figure_of_an_unknown_commit_is_stale():
    goal = goals.Goal("work", "script", lambda result: result["ratio"], 2.0)
    assert goals.line(goal, {"ratio": 2.5})[4] == "unknown, stale"
    assert kept.is_stale("0" * 40)


def test_every_goal_stands_in_the_table():
    assert all(goal.work in goals.table() for goal in goals.GOALS)
