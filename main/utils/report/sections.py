"""The parts of the page, each from what the runs left; '' where there is nothing to show."""

from collections.abc import Mapping, Sequence

from main.utils.report import facts
from main.utils.report.chart import chart, colour
from main.utils.report.markup import Markup, joined, table, tag
from main.utils.report.panels import curves_of, panels_of
from main.utils.report.run import Run
from main.utils.report.samples import Samples
from main.utils.report.scale import Scale, number
from main.utils.report.scores import Score, scores_of

NOTHING = Markup("")
MOST_ROWS, MOST_EPOCHS, LONGEST = 12, 12, 1500  # of samples; characters of a cell
BESIDE = ("step", "epoch")


def glance(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    """One run in large letters, several as a table."""
    known = [facts.glance(run) for run in runs]
    if len(runs) == 1:
        pairs = [tag("div", tag("dt", n), tag("dd", v)) for n, v in known[0].items()]
        return tag("dl", pairs, class_="facts")
    titles = list(dict.fromkeys(name for values in known for name in values))
    rows = [
        [_keyed(i, name, len(runs)), *(values.get(title, "") for title in titles)]
        for i, (name, values) in enumerate(zip(names, known, strict=True))
    ]
    return table(["run", *titles], rows, "glance")


def _keyed(run: int, name: str, runs: int) -> Markup:
    key = tag("i", class_=f"key {colour(run, 'train', runs)}")
    return tag("span", key, " ", tag("b", name), class_="keyed")


def warnings(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    told = [
        tag(
            "li",
            tag("b", f"{name}, step {step:,}: " if len(runs) > 1 else f"step {step:,}: "),
            text,
        )
        for run, name in zip(runs, names, strict=True)
        for step, text in run.warnings
    ]
    if not told:
        return NOTHING
    return tag("section", tag("h2", "Warnings"), tag("ul", told), class_="warnings", id="warnings")


def curves(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    first, rest = (
        [chart(panel, curves_of(panel, runs), names) for panel in part] for part in panels_of(runs)
    )
    if not first and not rest:
        return tag("p", "No values were recorded.", class_="missing")
    more = tag("summary", f"{len(rest)} more records")
    hidden = tag("details", more, tag("div", rest, class_="panels")) if rest else NOTHING
    return joined(tag("div", first, class_="panels"), hidden)


def scores(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    found = [(i, score) for i, run in enumerate(runs) for score in scores_of(run)]
    if not found:
        return NOTHING
    top = 1.0 if all(score.value <= 1 and (score.high or 0) <= 1 for _, score in found) else 100.0
    rows = [
        [
            *([_keyed(i, names[i], len(runs))] if len(runs) > 1 else []),
            *(
                score.name,
                "" if score.before is None else number(score.before),
                number(score.value),
            ),
            *(
                _between(score),
                str(score.n or ""),
                _whisker(score, top, colour(i, "train", len(runs))),
            ),
        ]
        for i, score in found
    ]
    titles = ["score", "before training", "newest", "95% interval", "answers", f"0 to {top:g}"]
    return table([*(["run"] if len(runs) > 1 else []), *titles], rows, "scores")


def _between(score: Score) -> str:
    if score.low is None or score.high is None:
        return "none: of all answers together"
    return f"{number(score.low)} to {number(score.high)}"


def _whisker(score: Score, top: float, own: str) -> Markup:
    def at(value: float) -> str:
        return f"{Scale(0, top, 8, 212).at(min(max(value, 0), top)):.1f}"

    parts = [tag("line", class_="track", x1=8, x2=212, y1=10, y2=10)]
    if score.low is not None and score.high is not None:
        span = {"x1": at(score.low), "x2": at(score.high)}
        parts.append(tag("line", class_="range", y1=10, y2=10, **span))
    if score.before is not None:
        parts.append(tag("circle", class_="before", cx=at(score.before), cy=10, r=3.5))
    parts.append(tag("circle", cx=at(score.value), cy=10, r=4))
    return tag("svg", parts, viewBox="0 0 220 20", class_=own, role="img", aria_label=score.name)


def samples(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    return joined([_of_run(run, name, len(runs)) for run, name in zip(runs, names, strict=True)])


def _of_run(run: Run, name: str, runs: int) -> Markup:
    parts: list[Markup] = []
    left_out = len(run.samples) - MOST_EPOCHS
    kept = run.samples if left_out <= 0 else [run.samples[0], *run.samples[-MOST_EPOCHS + 1 :]]
    for one in reversed(kept):
        parts.append(_epoch(one, one is run.samples[-1]))
    if left_out > 0:
        parts.append(tag("p", f"{left_out} epochs between are left out here.", class_="missing"))
    if run.answers:
        parts.append(_answers(run.answers))
    return joined(tag("h3", name) if runs > 1 else "", parts) if parts else NOTHING


def _epoch(one: Samples, is_open: bool) -> Markup:
    if one.titles:
        shown = table(one.titles, [map(_cell, row) for row in one.rows[:MOST_ROWS]], "texts")
    else:
        shown = tag("pre", _clipped(one.text))
    left_out = len(one.rows) - MOST_ROWS
    rest = tag("p", f"{left_out} more in the file.", class_="missing") if left_out > 0 else ""
    head = tag("summary", f"samples of epoch {one.epoch}")
    return tag("details", head, shown, rest, open="" if is_open else None)


def _answers(answers: Sequence[Mapping[str, str]]) -> Markup:
    titles = [title for title in answers[0] if title not in BESIDE]
    rows = [[_cell(row[title]) for title in titles] for row in answers[:MOST_ROWS]]
    head = tag("summary", f"answers to evaluation rows, step {answers[0]['step']}")
    left_out = len(answers) - MOST_ROWS
    rest = tag("p", f"{left_out} more in generated.csv.", class_="missing") if left_out > 0 else ""
    return tag("details", head, table(titles, rows, "texts"), rest, open="")


def _cell(text: str) -> str:
    """A score in four digits; of a text no blanks at its end, and a long one can be scrolled."""
    try:
        return tag("span", number(float(text)), class_="num") if "." in text else _long(text)
    except ValueError:
        return _long(text)


def _long(text: str) -> str:
    kept = _clipped(text.rstrip())
    return tag("div", kept, class_="long") if len(kept) > 200 or kept.count("\n") > 6 else kept


def _clipped(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]} … ({len(text) - LONGEST:,} characters more)"


def settings(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    parts = [_differences(runs, names)] if len(runs) > 1 else []
    for run, name in zip(runs, names, strict=True):
        given = run.given or run.settings
        whole = facts.training(run)
        body = [
            _pairs({n: facts.shown(v) for n, v in given.items()}),
            _behind(f"{len(run.defaults)} more, as by default",
                    {n: facts.shown(v) for n, v in run.defaults.items()}),
            _behind(f"how {run.checkpoint} was trained", whole),
        ]  # fmt: skip
        if not given and not whole:
            continue
        head = f"arguments of {name}" if len(runs) > 1 else "arguments"
        parts.append(tag("details", tag("summary", head), body, open=_open(len(runs) == 1)))
    return joined(parts)


def _differences(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    found = facts.differing(runs)
    if not found:
        return tag("p", "The settings of these runs are the same.", class_="soft")
    rows = [[name, *map(_clipped, values)] for name, values in found.items()]
    return joined(tag("h3", "What differs"), table(["setting", *names], rows, "names"))


def data(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    parts = [
        joined(tag("h3", name) if len(runs) > 1 else "", _pairs(facts.data(run)))
        for run, name in zip(runs, names, strict=True)
        if facts.data(run)
    ]
    return joined(parts)


def missing(runs: Sequence[Run], names: Sequence[str]) -> Markup:
    told = [
        tag("li", f"{name}: {text}" if len(runs) > 1 else text)
        for run, name in zip(runs, names, strict=True)
        for text in run.missing
    ]
    return tag("ul", told, class_="missing") if told else NOTHING


def _pairs(values: Mapping[str, str]) -> Markup:
    return table(["name", "value"], [[n, _clipped(v)] for n, v in values.items()], "names one")


def _behind(head: str, values: Mapping[str, str]) -> Markup:
    return tag("details", tag("summary", head), _pairs(values)) if values else NOTHING


def _open(is_open: bool) -> str | None:
    return "" if is_open else None
