"""Which curves a report shows, in which order, under which names."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from main.utils.curves import Points
from main.utils.report.run import Run

KINDS = ("train", "eval")


class Panel(NamedTuple):
    """A chart.

    key: column of the CSV files; title, unit: in words; share: shown in percent.
    noisy: whether a mean is drawn over the values.
    """

    key: str
    title: str
    unit: str = ""
    share: bool = False
    noisy: bool = True


class Curve(NamedTuple):
    """Points of a column of a run. run: its number; kind: 'train' or 'eval'."""

    run: int
    kind: str
    points: Points


PANELS = (
    Panel("loss", "loss"),
    Panel("reward/mean", "reward"),
    Panel("accuracy", "accuracy", "of preferences", share=True),
    Panel("rewards/margin", "margin of rewards"),
    Panel("kl", "KL to the reference", "nats a token"),
    Panel("completion_length", "length of completions", "tokens"),
    Panel("entropy", "entropy", "nats a token"),
    Panel("grad_norm", "gradient norm"),
    Panel("lr", "learning rate", noisy=False),
    Panel("tokens_per_second", "throughput", "tokens a second"),
    Panel("share_of_limit", "share of the machine's limit", share=True),
)
FIRST = {panel.key for panel in PANELS}
SCORE = "generated/"
_SHARES = ("ended", "clip_fraction", "frac_reward_zero_std")


def panels_of(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """What to show at once, and what behind a click: every column that any run has."""
    keys = {key for run in runs for kind in KINDS for key in run.curves.get(kind, {})}
    keys -= {"step", "epoch"}
    scores = [Panel(key, key.removeprefix(SCORE), "answers to evaluation rows")
              for key in sorted(keys) if key.startswith(SCORE)]  # fmt: skip
    rest = [Panel(key, key, share=key in _SHARES)
            for key in sorted(keys - FIRST) if not key.startswith(SCORE)]  # fmt: skip
    return [panel for panel in PANELS if panel.key in keys] + scores, rest


def curves_of(panel: Panel, runs: Sequence[Run]) -> list[Curve]:
    found = (Curve(i, kind, run.points(kind, panel.key))
             for i, run in enumerate(runs) for kind in KINDS)  # fmt: skip
    return [curve for curve in found if curve.points[0]]


def unique_names(runs: Iterable[Run]) -> list[str]:
    """Task names; where two runs have the same, with what tells their folders apart."""
    listed = list(runs)
    names = [run.name for run in listed]
    return [
        name if names.count(name) == 1 else f"{name} ({run.records.parent.parent})"
        for name, run in zip(names, listed, strict=True)
    ]
