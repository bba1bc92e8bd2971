"""What is to be said of rows together: their labels, languages, lengths, system texts."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from statistics import median

from main.loaders.doctor.example import Example
from main.loaders.doctor.findings import Book, Lengths
from main.loaders.doctor.texts import language

ENOUGH = 20  # rows of which shares are spoken of


@dataclass
class Balance:
    """Counts of one split; numbers of rows, no texts."""

    rows: int = 0
    languages: Counter = field(default_factory=Counter)
    labels: Counter = field(default_factory=Counter)
    answers: Counter = field(default_factory=Counter)
    places: list[tuple[str, str, bool]] = field(default_factory=list)  # place, language, system
    characters: list[int] = field(default_factory=list)
    longer: list[str] = field(default_factory=list)  # places of pairs whose chosen one is longer
    pairs: int = 0

    def see(self, example: Example) -> None:
        self.rows += 1
        spoken = language(" ".join((example.question, *example.answers)))
        self.languages[spoken] += bool(spoken)
        self.characters.append(sum(map(len, example.texts)))
        self.places.append((example.place, spoken, bool(example.system)))
        if example.label is not None:
            self.labels[str(example.label).lower()] += 1
        elif len(example.answers) == 1:
            self.answers[_digest(example.answers[0])] += 1
        if example.rejected and example.answers:
            self.pairs += 1
            if max(map(len, example.answers)) > max(map(len, example.rejected)):
                self.longer.append(example.place)

    def tell(self, book: Book, lengths: list[int] | None) -> None:
        """Into the book, what is out of balance.

        Args:
            lengths: tokens of each row; None = by characters.
        """
        self._labels(book)
        self._rare(book)
        sizes = self.characters if lengths is None else lengths
        middle = median(self.characters or [0])
        if len(sizes) >= ENOUGH:
            for size, (place, *_) in zip(self.characters, self.places, strict=True):
                if size > 20 * max(middle, 20):
                    book.note("outlier", place)
        if self.pairs >= ENOUGH and len(self.longer) >= 0.9 * self.pairs:
            book.add("longer-is-better", len(self.longer), self.longer[:5])

    def _labels(self, book: Book) -> None:
        places = [place for place, *_ in self.places][:5]
        for label, count in self.labels.most_common(1):
            if count == self.rows:
                book.add("one-label", count, places, f"have the label {label}, all of them.")
            elif self.rows >= ENOUGH and count > 0.9 * self.rows:
                book.add("label-imbalance", count, [], f"of {self.rows} have the label {label}.")
        for _, count in self.answers.most_common(1):
            if self.rows >= ENOUGH and count > 0.8 * self.rows:
                book.add("one-answer", count, [], f"of {self.rows} rows have the same answer.")

    def _rare(self, book: Book) -> None:
        if self.rows < ENOUGH:
            return
        most = self.languages.most_common(1)
        systems = sum(system for *_, system in self.places)
        rare_system = systems * 2 < self.rows
        for place, spoken, system in self.places:
            if most and most[0][1] >= 0.95 * self.rows and spoken and spoken != most[0][0]:
                book.note("rare-language", place)
            if 0 < systems < self.rows and system == rare_system:
                book.note("some-systems", place)


def lengths_of(sizes: list[int], tokens: bool) -> Lengths | None:
    """Of the rows of a split; None of none."""
    if not sizes:
        return None
    ordered = sorted(sizes)
    p95 = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    unit = "tokens" if tokens else "characters"
    return Lengths(unit, ordered[0], int(median(ordered)), p95, ordered[-1])  # type: ignore[arg-type]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.strip().encode("utf-8", "replace"), digest_size=8).digest()
