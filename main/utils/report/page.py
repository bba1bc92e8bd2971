"""The whole page: one HTML file that asks nothing of a network and works without scripts."""

from collections.abc import Callable, Sequence
from importlib.resources import files

from main import __version__
from main.utils.report import sections
from main.utils.report.chart import colour
from main.utils.report.markup import Markup, tag
from main.utils.report.panels import KINDS, unique_names
from main.utils.report.run import Run

# Name -> in light, in dark. Those of curves after Okabe and Ito, apart for colour-blind readers.
PALETTE = {
    "back": ("#ffffff", "#14171a"),
    "ink": ("#1b1f23", "#e6e8ea"),
    "soft": ("#5c656e", "#9aa4ad"),
    "faint": ("#b9c0c6", "#4a535b"),
    "line": ("#e4e7ea", "#2a3036"),
    "pale": ("#f5f6f7", "#1c2024"),
    "warn": ("#b45309", "#e0a14a"),
    "warn-back": ("#fdf6ec", "#241d12"),
    "c0": ("#0068a8", "#5cb1ec"),
    "c1": ("#c2500a", "#f0935a"),
    "c2": ("#00835f", "#3cc39a"),
    "c3": ("#a3467f", "#dd8fc0"),
    "c4": ("#8a6d00", "#d9bd4e"),
    "c5": ("#4b5a9e", "#a3aef0"),
}
Section = Callable[[Sequence[Run], Sequence[str]], Markup]
SECTIONS: dict[str, Section] = {
    "Curves": sections.curves,
    "Scores": sections.scores,
    "Samples": sections.samples,
    "Settings": sections.settings,
    "Data": sections.data,
    "Not shown": sections.missing,
}
FIRST: tuple[Section, ...] = (sections.glance, sections.warnings)
NOTE = "Pale lines are what was recorded, strong ones their mean over a twentieth of the run."


def page(runs: Sequence[Run]) -> str:
    """The report of runs as HTML."""
    names = unique_names(runs)
    title = ", ".join(names) if len(names) < 4 else f"{len(names)} runs"
    parts = {head: made for head, make in SECTIONS.items() if (made := make(runs, names))}
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: report"),
        tag("style", Markup(_style(len(runs)))),
    )
    body = tag(
        "body",
        tag("header", tag("h1", title), [make(runs, names) for make in FIRST]),
        _bar(list(parts), names),
        tag("main", [_section(name, content) for name, content in parts.items()]),
        tag("footer", f"Written by main-peft {__version__}. {NOTE}"),
        tag("script", Markup(_own("page.js"))),
    )  # fmt: skip
    return "<!DOCTYPE html>\n" + tag("html", head, body, lang="en") + "\n"


def _section(name: str, content: Markup) -> Markup:
    return tag("section", tag("h2", name), content, id=_anchor(name))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _bar(heads: Sequence[str], names: Sequence[str]) -> Markup:
    nav = tag("nav", [tag("a", head, href=f"#{_anchor(head)}") for head in heads])
    keys = [_toggle(kind, kind, f"{kind} {_kind(kind, len(names))}") for kind in KINDS]
    if len(names) > 1:
        keys += [
            _toggle(f"r{i}", name, colour(i, "train", len(names))) for i, name in enumerate(names)
        ]
    themes = [
        tag("label", tag("input", type="radio", name="theme", id=f"theme-{theme}", checked=checked),
            theme)
        for theme, checked in (("auto", ""), ("light", None), ("dark", None))
    ]  # fmt: skip
    legend = tag("div", keys, class_="legend", role="group", aria_label="curves")
    theme = tag("div", themes, class_="theme", role="group", aria_label="theme")
    return tag("div", tag("div", nav, legend, theme), class_="bar")


def _kind(kind: str, runs: int) -> str:
    return colour(0, kind, runs) if runs == 1 else "any"


def _toggle(name: str, words: str, key: str) -> Markup:
    box = tag("input", type="checkbox", id=f"show-{name}", checked="")
    return tag("label", box, tag("i", class_=f"key {key}"), words)


def _style(runs: int) -> str:
    plain = "".join(f"--{name}:{light};" for name, (light, _) in PALETTE.items())
    both = "".join(f"--{name}:light-dark({a},{b});" for name, (a, b) in PALETTE.items())
    hidden = "".join(
        f"body:has(#show-{name}:not(:checked)) :is(.curve,.label,li).{name}{{display:none}}"
        for name in [*KINDS, *(f"r{i}" for i in range(runs))]
    )
    themes = f":root{{{plain}}}@supports (color:light-dark(#000,#fff)){{:root{{{both}}}}}"
    return f"{themes}\n{_own('page.css')}\n{hidden}"


def _own(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
