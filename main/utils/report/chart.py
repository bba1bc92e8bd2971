"""A panel of curves as inline SVG: raw values faint, their mean on top, labels at the lines."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

from main.utils.report import scale
from main.utils.report.markup import Markup, joined, tag
from main.utils.report.panels import Curve, Panel
from main.utils.report.scale import Point, Scale

WIDTH, HEIGHT = 380, 212
LEFT, RIGHT, TOP, BOTTOM = 46, 78, 10, 26
CHARACTER = 6.4  # pixels of a digit beside an axis
LABEL_GAP = 13.0
MOST_LABELS, MOST_VALUES = 8, 4  # more labels are left out, more values behind a click
COLOURS = 6
SHORTEST = 25  # records: fewer are drawn as they are
DOTS = 40  # points of an evaluation: more are a line


class Frame(NamedTuple):
    """Both axes of a panel, how its values are written, whether a mean is drawn over them."""

    x: Scale
    y: Scale
    y_ticks: list[float]
    written: Callable[[float], str]
    noisy: bool

    def pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(self.x.at(x), self.y.at(y)) for x, y in points]


def chart(panel: Panel, curves: Sequence[Curve], names: Sequence[str]) -> Markup:
    """The panel as a figure; `names` are those of all runs."""
    frame = _frame(panel, curves)
    label = f"{panel.title}: {', '.join(_who(curve, names) for curve in curves)}"
    drawing = tag(
        "svg",
        *(_axes(frame), *(_curve(curve, frame, names) for curve in curves)),
        _labels(curves, frame, names),
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=label,
        tabindex=0,
        data_x=f"{frame.x.low:g} {frame.x.high:g} {frame.x.start:g} {frame.x.end:g}",
        data_y=f"{frame.y.low!r} {frame.y.high!r} {frame.y.start:g} {frame.y.end:g}",
        data_unit="%" if panel.share else None,
    )
    unit = tag("span", f" {panel.unit}", class_="unit") if panel.unit else ""
    values = tag("ul", [_values(curve, frame, names) for curve in curves], class_="values")
    if len(curves) > MOST_VALUES:
        values = tag("details", tag("summary", "values"), values, class_="values")
    return tag("figure", tag("figcaption", tag("b", panel.title), unit), drawing, values)


def colour(run: int, kind: str, runs: int) -> str:
    """Classes of a curve: the colour of its run, or of its kind where there is one run.

    Where colours are used again, lines are dotted.
    """
    number = run if runs > 1 else int(kind == "eval")
    return f"c{number % COLOURS}{' again' if number >= COLOURS else ''}"


def _classes(curve: Curve, names: Sequence[str]) -> str:
    return f"r{curve.run} {curve.kind} {colour(curve.run, curve.kind, len(names))}"


def _who(curve: Curve, names: Sequence[str]) -> str:
    return curve.kind if len(names) == 1 else f"{names[curve.run]}, {curve.kind}"


def _frame(panel: Panel, curves: Sequence[Curve]) -> Frame:
    steps = [step for curve in curves for step in (curve.points[0][0], curve.points[0][-1])]
    values = [value for curve in curves for value in curve.points[1]]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    y_ticks = scale.ticks(low, high)
    written = partial(scale.percent if panel.share else scale.number, exact=scale.digits(low, high))
    left = max(LEFT, 10 + CHARACTER * max(len(written(tick)) for tick in y_ticks))
    return Frame(
        Scale(first, max(last, first + 1), left, WIDTH - RIGHT),
        Scale(y_ticks[0], y_ticks[-1], HEIGHT - BOTTOM, TOP),
        y_ticks,
        written,
        panel.noisy,
    )


def _axes(frame: Frame) -> Markup:
    lines, words, left = [], [], round(frame.x.start)
    for tick in frame.y_ticks:
        y = f"{frame.y.at(tick):.1f}"
        lines.append(tag("line", x1=left, x2=WIDTH - RIGHT, y1=y, y2=y))
        words.append(tag("text", frame.written(tick), x=left - 6, y=y, dy="0.32em", class_="y"))
    for tick in scale.step_ticks(frame.x.low, frame.x.high):
        x = f"{frame.x.at(tick):.1f}"
        words.append(tag("text", scale.number(tick), x=x, y=HEIGHT - 10, class_="x"))
    words.append(tag("text", "step", x=WIDTH - RIGHT + 14, y=HEIGHT - 10, class_="axis"))
    return joined(tag("g", lines, class_="grid"), tag("g", words, class_="ticks"))


def _curve(curve: Curve, frame: Frame, names: Sequence[str]) -> Markup:
    points: list[Point] = list(zip(*curve.points, strict=True))
    kept = scale.thinned(points)
    parts = []
    if _is_smoothed(curve, frame):
        parts.append(tag("path", d=scale.path(frame.pixels(kept)), class_="raw"))
        mean = scale.thinned(scale.smoothed(points), scale.BUCKETS // 2)
        parts.append(tag("path", d=scale.path(frame.pixels(mean)), class_="line"))
    else:
        parts.append(tag("path", d=scale.path(frame.pixels(kept)), class_="line"))
    if len(kept) <= (DOTS if curve.kind == "eval" else 1):
        parts += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.6) for x, y in frame.pixels(kept)]
    return tag(
        "g",
        tag("title", _who(curve, names)),
        *parts,
        class_=f"curve {_classes(curve, names)}",
        data_name=_who(curve, names),
        data_steps=_deltas([int(step) for step, _ in kept]),
        data_values=" ".join(f"{value:.5g}" for _, value in kept),
    )


def _deltas(steps: Sequence[int]) -> str:
    """The first step, then by how much each is further."""
    return " ".join(map(str, [steps[0], *(after - before for before, after in pairwise(steps))]))


def _labels(curves: Sequence[Curve], frame: Frame, names: Sequence[str]) -> Markup:
    """At the right end of the lines; of several runs the name alone."""
    trains = [curve for curve in curves if curve.kind == "train"]
    labelled = list(curves) if len(names) == 1 else trains or list(curves)
    if len(labelled) > MOST_LABELS:
        return Markup("")
    ends = [frame.y.at(_line_end(curve, frame)) for curve in labelled]
    places = scale.spread(ends, LABEL_GAP, TOP + 2, HEIGHT - BOTTOM - 2)
    return joined(
        [
            tag("text", _label(curve, frame, names), x=WIDTH - RIGHT + 7, y=f"{place:.1f}",
                dy="0.32em", class_=f"label {_classes(curve, names)}")
            for curve, place in zip(labelled, places, strict=True)
        ]
    )  # fmt: skip


def _label(curve: Curve, frame: Frame, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"{curve.kind} {frame.written(curve.points[1][-1])}"
    name = names[curve.run]
    return name if len(name) <= 12 else f"{name[:11]}…"


def _line_end(curve: Curve, frame: Frame) -> float:
    points = list(zip(*curve.points, strict=True))
    return (scale.smoothed(points) if _is_smoothed(curve, frame) else points)[-1][1]


def _is_smoothed(curve: Curve, frame: Frame) -> bool:
    return frame.noisy and curve.kind == "train" and len(curve.points[0]) >= SHORTEST


def _values(curve: Curve, frame: Frame, names: Sequence[str]) -> Markup:
    """The curve in words: first, last, and what lies between."""
    key = tag("i", class_=f"key {_classes(curve, names)}")
    text = f"{_who(curve, names)}: {_told(curve, frame, alone=len(names) == 1)}"
    return tag("li", key, text, class_=f"r{curve.run} {curve.kind}")


def _told(curve: Curve, frame: Frame, alone: bool) -> str:
    steps, values = curve.points
    low, high = min(values), max(values)
    first, last, lowest, highest = map(frame.written, (values[0], values[-1], low, high))
    if lowest == highest:
        return f"{last} throughout" if len(values) > 1 else last
    if len(values) == 2:
        return f"{first} → {last}"
    if not alone:
        return f"{first} → {last}, within {lowest} and {highest}"
    where = steps[values.index(low)], steps[values.index(high)]
    return (
        f"{first} → {last}, lowest {lowest} (step {where[0]:,}), highest {highest} "
        f"(step {where[1]:,})"
    )
