"""Rows that come twice, in one split or in two, and answers that contradict each other."""

import hashlib
from dataclasses import dataclass, field

from main.loaders.doctor.example import Example
from main.loaders.doctor.findings import Book
from main.loaders.doctor.near import SHORTEST, Neighbours, normal


@dataclass
class Repeats:
    """What was seen so far; a few hundred bytes a row, no texts."""

    book: Book
    rows: dict[bytes, str] = field(default_factory=dict)  # digest -> split
    asked: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)  # -> split, answers
    judged: dict[tuple[bytes, bytes], bool] = field(default_factory=dict)
    neighbours: Neighbours = field(default_factory=Neighbours)
    splits: list[str] = field(default_factory=list)  # of what the neighbours hold

    def see(self, example: Example) -> None:
        question = normal("\n".join((example.system, *example.asked)))
        answers = normal("\n".join((*example.answers, "", *example.rejected)))
        row = _digest(f"{question}\n\n{answers} {example.label}")
        first = self.rows.setdefault(row, example.split)
        if len(self.rows) + self._repeated > self._seen:
            self._new(example, question, answers)
        else:
            self._repeated += 1
            code = "duplicate" if first == example.split else "leak"
            self.book.note(code, example.place)
        self._seen += 1

    _seen: int = 0
    _repeated: int = 0

    def _new(self, example: Example, question: str, answers: str) -> None:
        asked, answered = _digest(question), _digest(answers)
        self._judge(example, asked)
        if example.label is None and asked in self.asked:
            split, _ = self.asked[asked]
            if split != example.split:
                self.book.note("leaked-question", example.place)
            elif example.answers and not example.rejected:
                self.book.note("conflict", example.place)
        self.asked.setdefault(asked, (example.split, answered))
        self._near(example, f"{question}\n\n{answers}")

    def _judge(self, example: Example, asked: bytes) -> None:
        """Whether somebody said the contrary of an answer."""
        if not example.rejected and example.label is None:
            return
        good = example.label is not False
        said = [(answer, good) for answer in example.answers]
        said += [(answer, False) for answer in example.rejected]
        keys = [((asked, _digest(normal(answer))), verdict) for answer, verdict in said]
        if any(self.judged.get(key, verdict) != verdict for key, verdict in keys):
            self.book.note("both-good-and-bad", example.place)
        self.judged |= dict(keys)

    def _near(self, example: Example, text: str) -> None:
        if len(text) < SHORTEST:
            return
        found = self.neighbours.find(text)
        self.splits.append(example.split)
        if found is not None:
            same = self.splits[found] == example.split
            self.book.note("near-duplicate" if same else "near-leak", example.place)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
