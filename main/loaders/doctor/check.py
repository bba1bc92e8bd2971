"""Look at rows before training on them: `check(data)` -> a typed report.

    from main.loaders import check

    print(check("tickets.csv", from_pretrained="models/SmolLM2-135M-Instruct", max_length=512))

Nothing is trained or kept, and one row is alive at a time; of each a few hundred bytes are
remembered, by which repetitions are found.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from main.loaders.cache import valid_rows
from main.loaders.doctor.balance import Balance, lengths_of
from main.loaders.doctor.checkup import Checkup
from main.loaders.doctor.example import Example, example_of
from main.loaders.doctor.findings import Book, SplitCounts
from main.loaders.doctor.kinds import KINDS
from main.loaders.doctor.near import normal
from main.loaders.doctor.repeats import Repeats
from main.loaders.doctor.texts import OF_ANSWERS, OF_TEXTS, language
from main.loaders.format import Format, Numbered
from main.loaders.reading import reading
from main.loaders.registry import get_loader
from main.loaders.report import Report
from main.loaders.shapes import AUTO
from main.loaders.sources import Part, Source

_BATCH = 256
_FATES = {
    **{"skipped": "too-long", "cut": "cut", "both": "cut"},
    **{"shortened": "shortened", "weightless": "weightless"},
}
# An answer this long stands in its prompt by no chance: characters, of them letters beyond ASCII.
_TELLING, _TELLING_WIDE = 24, 8


def check(
    data_path: Any,
    loader_name: str = AUTO,
    *,
    from_pretrained: str | Path | None = None,
    tokenizer: Any = None,
    max_length: int = 1024,
    data_present_path: str | Path = "./data/present.json",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Checkup:
    """What is to be said of rows, from counts to faults.

    Args:
        data_path, data_present_path: as in the trainers; every split is looked at.
        loader_name: a row format, or 'auto'.
        from_pretrained, tokenizer: a model's folder, or its tokenizer: with one of them rows are
            encoded too, and lengths are tokens.
        max_length: tokens a row may have.
        template_kwargs: variables of the chat template.

    Raises:
        ConfigError, DataError, MissingFileError: data that is not there, or rows of no known shape.
            Rows that cannot be used are findings, not errors.
        ModelError: a tokenizer that cannot be loaded, or has no chat template where one is needed.
    """
    found = reading(
        data_path, loader_name, from_pretrained, tokenizer, data_present_path, template_kwargs
    )
    return examine(found.sources, found.loader, found.template, max_length)


def examine(
    sources: Mapping[str, Source], loader_name: str, template: Any, max_length: int
) -> Checkup:
    """Of data that was found; `template` is what `get_template` returned, or None."""
    look = _Look(get_loader(loader_name), template, max_length)
    splits = {split: look.split(split, source) for split, source in sources.items()}
    limit = max_length if template is not None else None
    return Checkup(loader_name, limit, splits, look.book.findings())


class _Look:
    """Goes through the rows of all splits, and notes what it finds."""

    def __init__(self, form: Format, template: Any, max_length: int):
        self.form, self.template, self.max_length = form, template, max_length
        self.book = Book(KINDS)
        self.repeats = Repeats(self.book)

    def split(self, split: str, source: Source) -> SplitCounts:
        balance, rows, usable, tokens = Balance(), 0, 0, list[int]()
        for part in source.parts:
            report = Report()
            for batch in _batches(valid_rows(part, self.form, report)):
                lengths, refused = self._encoded(part, batch)
                tokens += lengths
                usable -= refused
                for number, row in batch:
                    example = example_of(row, self.form, split, _place(part, number))
                    self._see(example)
                    balance.see(example)
            self._tell(part, report)
            rows, usable = rows + report.rows, usable + report.rows - report.bad
        encoded = self.template is not None
        balance.tell(self.book, tokens if encoded else None)
        sizes = lengths_of(tokens if encoded else balance.characters, encoded)
        languages = dict(balance.languages.most_common())
        return SplitCounts(
            rows, usable, sizes, {n: c for n, c in languages.items() if c}, dict(balance.labels)
        )

    def _see(self, example: Example) -> None:
        for code, finds in OF_TEXTS.items():
            if any(map(finds, example.texts)):
                self.book.note(code, example.place)
        for code, finds in OF_ANSWERS.items():
            if any(map(finds, example.answers)):
                self.book.note(code, example.place)
        for code in _of_pairs(example):
            self.book.note(code, example.place)
        self.repeats.see(example)

    def _encoded(self, part: Part, batch: list[Numbered]) -> tuple[list[int], int]:
        """(tokens of the rows as they are trained, how many the template refuses)."""
        if self.template is None:
            return [], 0
        report = Report()
        found = list(self.form.encode(batch, self.template, self.max_length, report))
        for number, problem in report.problems:
            self.book.note("template", _place(part, number), problem)
        self._further(part, report, "template")
        for fate, (count, first) in report.fates.items():
            self.book.add(_FATES[fate], count, [_place(part, n) for n in first])
        return [row["length"] for row in found], report.bad

    def _tell(self, part: Part, report: Report) -> None:
        """What the rows' own format says."""
        for number, problem in report.problems:
            self.book.note("refused", _place(part, number), problem)
        self._further(part, report, "refused")
        if report.rows == report.bad:
            self.book.note("no-rows", part.name)
        for name, count in report.unread.items():
            told = f"have '{name}', which nothing reads."
            self.book.add("unread-field", count, [part.name], told)

    def _further(self, part: Part, report: Report, code: str) -> None:
        """Those beyond the first, of which a report keeps the number alone."""
        more = report.bad - len(report.problems)
        if more > 0:
            self.book.add(code, more, [], f"more of {part.name} cannot be used.")


def _of_pairs(example: Example) -> Iterator[str]:
    """Codes of what question and answers are to each other."""
    question = normal(example.question)
    answers = [normal(answer) for answer in example.answers]
    if not question:
        yield "empty-question"
    if question and question in answers:
        yield "echo"
    elif _is_given_away(example, answers[-1:] if not example.rejected else answers):
        yield "answer-in-prompt"
    if set(answers) & {normal(answer) for answer in example.rejected}:
        yield "same-but-blanks"
    asked = language(example.asked[-1]) if example.asked else ""
    spoken = {language(answer) for answer in example.answers} - {""}
    if asked and spoken and asked not in spoken:
        yield "other-language"


def _is_given_away(example: Example, answers: list[str]) -> bool:
    """Whether somebody else than the assistant said an answer before."""
    said = normal("\n".join((example.system, *example.said)))
    return any(_is_telling(answer) and answer in said for answer in answers)


def _is_telling(answer: str) -> bool:
    return len(answer) >= (_TELLING if answer.isascii() else _TELLING_WIDE)


def _place(part: Part, number: int) -> str:
    return f"{Path(part.name).name if part.path else part.name} {part.word} {number}"


def _batches(rows: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    while batch := list(islice(rows, _BATCH)):
        yield batch
