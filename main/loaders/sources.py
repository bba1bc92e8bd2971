"""Where rows come from: files, lists and data sets, one after the other or in shares."""

import hashlib
import io
import json
import os
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import DataError
from main.loaders import strict_json
from main.loaders.arrow_rows import read_dataset
from main.loaders.files import VERSION, RowWord, kind_of, read_rows
from main.loaders.format import Numbered, OnBad, Row
from main.loaders.shapes import Shape, described, shape_of

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Part:
    """Rows of one file, list or data set.

    name: for messages. word: what its row numbers count.
    folder: where relative paths of pictures begin, after the working directory.
    read: (on_bad) -> the numbered rows as they stand there.
    content: () -> a digest of all of them.
    path: of a file.
    shape, loader: how rows of other libraries are read; None = they are ours.
    """

    name: str
    word: RowWord
    folder: Path
    read: Callable[[OnBad], Iterator[Numbered]]
    content: Callable[[], str]
    path: Path | None = None
    shape: Shape | None = None
    loader: str = ""

    def rows(self, on_bad: OnBad) -> Iterator[Numbered]:
        """Rows of our formats, one at a time; those that cannot be read so are told to `on_bad`."""
        if self.shape is None:
            yield from self.read(on_bad)
            return
        for number, row in self.read(on_bad):
            if shape_of(row) != self.shape:
                on_bad(
                    number,
                    f"{described(row)}; the first row is one of {self.shape.name}. Rows of one "
                    "file are of one kind: put the others into a file of their own.",
                )
                continue
            try:
                own = self.shape.read(row, self.loader)
            except DataError as error:
                on_bad(number, str(error))
            else:
                yield number, own

    def digest(self) -> str:
        """Of the rows, and of how they are read."""
        return self.content() + (f" {self.shape.key} {self.loader}" if self.shape else "")

    def told(self, problems: Sequence[str]) -> list[str]:
        """Sentences about our row with the names of theirs."""
        return [self.shape.told(p) for p in problems] if self.shape else list(problems)

    def shaped(self, shape: Shape, loader: str) -> "Part":
        return replace(self, shape=shape, loader=loader)

    def first(self) -> Numbered | None:
        """The first row that can be read; None of none."""
        return next(self.read(lambda number, problem: None), None)


@dataclass(frozen=True)
class Source:
    """The rows of a split.

    weights: (parts that belong together, their share of the draws) for every entry of a mixture, in
        the order of the parts; empty = each row once.
    """

    parts: tuple[Part, ...]
    weights: tuple[tuple[int, float], ...] = ()

    def digest(self) -> str:
        """Of one part its own, so that a file has the digest of its bytes."""
        digests = [part.digest() for part in self.parts]
        return digests[0] if len(digests) == 1 else _sha256(map(str.encode, digests))

    @property
    def name(self) -> str:
        return ", ".join(part.name for part in self.parts)


def of_file(path: str | Path) -> Part:
    """Raises MissingFileError, DataError: there is no such file, or it is none of data."""
    path = Path(path).expanduser()
    kind = kind_of(path)

    def content() -> str:
        read = "" if kind.name in ("lines", "array") else f" {kind.name} {VERSION}"
        return file_digest(path) + read

    return Part(
        str(path), kind.word, path.parent, lambda on_bad: read_rows(path, on_bad), content, path
    )


def of_rows(rows: Sequence[Mapping[str, Any]], name: str = "data_path") -> Part:
    """Rows in memory; they are not changed."""

    def read(on_bad: OnBad) -> Iterator[Numbered]:
        for number, row in enumerate(rows, start=1):
            try:
                yield number, _checked(row)
            except (strict_json.NotJson, DataError) as error:
                on_bad(number, str(error))

    return Part(name, "row", Path.cwd(), read, cache(lambda: _rows_digest(read)))


def of_dataset(dataset: "datasets.Dataset", name: str = "data_path") -> Part:
    """A data set in memory, or mapped into it."""

    def read(on_bad: OnBad) -> Iterator[Numbered]:
        return read_dataset(dataset, on_bad)

    return Part(name, "row", Path.cwd(), read, cache(lambda: _rows_digest(read)))


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rows_digest(read: Callable[[OnBad], Iterator[Numbered]]) -> str:
    bad: list[str] = []  # rows that cannot be read are part of what is there

    def lines() -> Iterator[bytes]:
        for _, row in read(lambda number, problem: bad.append(f"{number} {problem}")):
            yield json.dumps(row).encode() + b"\n"
        yield json.dumps(bad).encode()

    return _sha256(lines())


def _sha256(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _checked(row: Any) -> Row:
    if not isinstance(row, Mapping):
        raise DataError(f"a row must be a dict; found {type(row).__name__}.")
    found: Row = _plain(row)
    strict_json.check(found)
    return found


def _plain(value: Any) -> Any:
    """A copy as JSON has it: paths as text, pictures as data URLs, numbers of numpy as Python's."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if any(base.__module__ == "PIL.Image" for base in type(value).__mro__):
        stream = io.BytesIO()
        value.save(stream, "PNG")
        return f"data:image/png;base64,{b64encode(stream.getvalue()).decode()}"
    if type(value).__module__ == "numpy":
        return _plain(value.tolist())
    raise DataError(f"a value of type {type(value).__name__} is none that JSON has.")
