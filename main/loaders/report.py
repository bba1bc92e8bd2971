"""What became of the rows of a file: refused, shortened, cut or skipped."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from main.errors import DataError

logger = logging.getLogger("main.loaders")

# '': left as it was; both: shortened and cut.
Fate = Literal["", "shortened", "cut", "both", "skipped", "weightless"]

_BAD_SHOWN = 20
_ROWS_SHOWN = 5
_FIELDS_SHOWN = 20
_MEANING = {
    "shortened": "lost their oldest turns",
    "cut": "had the end of an answer cut off",
    "both": "lost their oldest turns and the end of an answer",
    "skipped": "were skipped: their prompt leaves no room for an answer",
    "weightless": "are not trained: their weights are 0",
}


@dataclass
class Report:
    """Counts and the first row numbers; never a list that grows with the file.

    rows: rows read. bad: rows refused. problems: sentences about the first of these.
    fates: fate -> [count, first row numbers].
    unread: field without a meaning -> in how many rows it stands.
    """

    rows: int = 0
    bad: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)
    fates: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def refuse(self, number: int, problems: list[str]) -> None:
        """Note a row that is not what it claims to be."""
        self.bad += 1
        if len(self.problems) < _BAD_SHOWN:
            self.problems.append((number, " ".join(problems)))

    def note_unread(self, names: Iterable[str]) -> None:
        """Note fields of a row that nobody reads."""
        for name in names:
            if name in self.unread or len(self.unread) < _FIELDS_SHOWN:
                self.unread[name] = self.unread.get(name, 0) + 1

    def note(self, number: int, fate: Fate) -> None:
        """Note what `max_length` did to a row; '' is nothing."""
        if fate:
            count, first = self.fates.get(fate, (0, []))
            self.fates[fate] = count + 1, [*first, number][:_ROWS_SHOWN]

    def raise_bad(self, name: str, word: str) -> None:
        """Raise one DataError about all refused rows; do nothing when there is none."""
        if not self.bad:
            return
        lines = [f"{name} {word} {number}: {text}" for number, text in sorted(self.problems)]
        if self.bad > 1:
            more = f" (the first {_BAD_SHOWN})" if self.bad > _BAD_SHOWN else ""
            lines.insert(0, f"{name}: {self.bad} of {self.rows} rows cannot be used{more}:")
        raise DataError("\n".join(lines))

    def log(self, name: str, word: str, max_length: int | None) -> None:
        """One warning that says what the limit did to how many rows; silent when nothing.

        Fields that nobody reads are named in a line of their own.
        """
        parts = [
            f"{count} {_MEANING[fate]} ({word} {', '.join(map(str, first))}"
            f"{', ...' if count > len(first) else ''})"
            for fate, (count, first) in self.fates.items()
        ]
        if parts:
            text = "; ".join(parts)
            logger.warning("%s: of %d rows at max_length=%s, %s", name, self.rows, max_length, text)
        if self.unread:
            fields = ", ".join(f"'{field}' ({count})" for field, count in self.unread.items())
            logger.warning("%s: fields that nothing reads, and their rows: %s", name, fields)
