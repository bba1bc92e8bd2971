"""What a look at rows finds: its kinds, and the typed report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Level = Literal["error", "warning", "note"]
PLACES_SHOWN = 5


class Kind(NamedTuple):
    """One kind of finding.

    level: error = training refuses such rows; warning = most likely a fault; note = worth knowing.
    meaning: what is said of the rows, behind their number.
    advice: what to do.
    """

    level: Level
    meaning: str
    advice: str


@dataclass
class Finding:
    """Rows of which the same is to be said.

    code: the name of its kind, as in docs/check.md.
    places: where the first of them stand, as "train.jsonl line 3".
    """

    code: str
    level: Level
    meaning: str
    advice: str
    count: int = 0
    places: list[str] = field(default_factory=list)

    def note(self, place: str) -> None:
        self.count += 1
        if len(self.places) < PLACES_SHOWN:
            self.places.append(place)


@dataclass
class Lengths:
    """Of the rows of a split: tokens as trained, or characters where no tokenizer was given."""

    unit: Literal["tokens", "characters"]
    shortest: int
    median: int
    p95: int
    longest: int


@dataclass
class SplitCounts:
    """rows: all that were read; usable: those that training would take."""

    rows: int
    usable: int
    lengths: Lengths | None
    languages: dict[str, int]
    labels: dict[str, int]


@dataclass
class Examination:
    """What was found of rows.

    loader: that reads the rows.
    max_length: tokens a row may have; None where no tokenizer was given.
    splits: split -> its counts.
    findings: errors first, then warnings, then notes.
    """

    loader: str
    max_length: int | None
    splits: dict[str, SplitCounts]
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """Errors and warnings."""
        return [finding for finding in self.findings if finding.level != "note"]

    def codes(self) -> set[str]:
        return {finding.code for finding in self.findings}


class Book:
    """Findings as they come in."""

    def __init__(self, kinds: Mapping[str, Kind]):
        self._kinds, self._found = kinds, dict[str, Finding]()

    def note(self, code: str, place: str, meaning: str = "") -> None:
        """Another row of a kind; `meaning` makes a finding of its own."""
        self._of(code, meaning).note(place)

    def add(self, code: str, count: int, places: Sequence[str], meaning: str = "") -> None:
        """So many rows at once, of which the first stand at these places."""
        found = self._of(code, meaning)
        found.count += count
        found.places = [*found.places, *places][:PLACES_SHOWN]

    def _of(self, code: str, meaning: str) -> Finding:
        kind, key = self._kinds[code], f"{code} {meaning}"
        new = Finding(code, kind.level, meaning or kind.meaning, kind.advice)
        return self._found.setdefault(key, new)

    def findings(self) -> list[Finding]:
        order = ("error", "warning", "note")
        return sorted(self._found.values(), key=lambda f: (order.index(f.level), -f.count))
