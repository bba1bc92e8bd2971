"""Samples of an epoch: the Markdown table that a run wrote, taken apart again."""

import re
from pathlib import Path
from typing import NamedTuple

_BAR = re.compile(r"((?:[^\\|]|\\.)*)\|", re.DOTALL)
_ESCAPED = re.compile(r"\\([\\|])|<br>")


class Samples(NamedTuple):
    """Of one epoch.

    text: of the file; titles, rows: of the table, where it is one; epoch: as its name says.
    """

    text: str
    titles: list[str] = []  # noqa: RUF012 (never changed)
    rows: list[list[str]] = []  # noqa: RUF012
    epoch: int = 0


def read_samples(path: Path) -> Samples:
    """The samples of `samples_<epoch>.md`."""
    text = path.read_bytes().decode("utf-8", errors="replace")
    epoch = int(path.stem.rpartition("_")[2])
    lines = [cells(line) for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or set(lines[1]) != {"---"}:
        return Samples(text, epoch=epoch)
    titles = lines[0]
    return Samples(text, titles, [row for row in lines[2:] if len(row) == len(titles)], epoch)


def cells(line: str) -> list[str]:
    r"""The cells of a line as `markdown_table` writes it; a line break is `<br>` there.

    >>> cells(r"| a \| b | c<br>d |")
    ['a | b', 'c\nd']
    """
    parts = _BAR.findall(line.strip().removeprefix("|"))
    return [_ESCAPED.sub(lambda m: m[1] or "\n", part[1:-1]) for part in parts]
