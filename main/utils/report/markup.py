"""HTML and SVG as text; what is no `Markup` is text of somebody and gets escaped."""

import html
from collections.abc import Iterable

VOID = ("br", "input", "meta")


class Markup(str):
    """Text that is HTML already; made by `tag` and `joined`, and of our own constants."""


Child = str | Iterable[str]


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """An element; attributes that are None are left out.

    In their names `_` stands for `-`, and one at the end is dropped (`class_`).

    >>> tag("p", "a < b", tag("br"), class_="note", data_x="1")
    '<p class="note" data-x="1">a &lt; b<br></p>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Markup:
    """One after the other; of an iterable its members.

    >>> joined("<", [tag("b", "x"), "y"])
    '&lt;<b>x</b>y'
    """
    return Markup("".join(map(_one, children)))


def _one(child: Child) -> str:
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str):
        return html.escape(_visible(child))
    return "".join(map(_one, child))


def _visible(text: str) -> str:
    """Without control characters and halves of surrogates, which HTML cannot hold."""
    kept = (
        c if c in "\n\t" or (c >= " " and not "\ud800" <= c <= "\udfff") else "\ufffd" for c in text
    )
    return "".join(kept)


def table(titles: Iterable[Child], rows: Iterable[Iterable[Child]], class_: str = "") -> Markup:
    """A table that becomes cards on a narrow screen, each cell with its title."""
    heads = list(titles)

    def line(row: Iterable[Child]) -> Markup:
        cells = zip(heads, row, strict=True)
        return tag("tr", [tag("td", cell, data_title=_plain(head)) for head, cell in cells])

    body = [line(row) for row in rows]
    head = tag("thead", tag("tr", [tag("th", title, scope="col") for title in heads]))
    return tag("div", tag("table", head, tag("tbody", body), class_=class_ or None), class_="wide")


def _plain(title: Child) -> str:
    return title if isinstance(title, str) and not isinstance(title, Markup) else ""
