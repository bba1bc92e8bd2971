"""Published files of a benchmark -> checked rows: JSON, JSON Lines, CSV, or a folder of them."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from main.errors import DataError, MissingFileError
from main.evaluation.benchmarks.benchmark import Benchmark
from main.loaders.files import read_rows, row_word
from main.loaders.report import Report

SUFFIXES = (".jsonl", ".json", ".csv")


def read_benchmark(benchmark: Benchmark, path: str | Path) -> list[dict[str, Any]]:
    """All rows, file after file by their names; a row without `subject` has its file's.

    Raises:
        MissingFileError: there is no such file or folder.
        DataError: no file, no row, or rows that cannot be asked or scored; those of a file are in
            one message.
    """
    found: list[dict[str, Any]] = []
    for file in _files(Path(path).expanduser()):
        report = Report()
        for number, row in _rows(file, benchmark.columns):
            report.rows += 1
            row.setdefault("subject", _subject(file))
            if problems := benchmark.problems(row):
                report.refuse(number, problems)
            found.append(row)
        report.raise_bad(str(file), "row" if _is_csv(file) else row_word(file))
    if not found:
        raise DataError(f"{path} has no rows: there is nothing to answer.")
    return found


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise MissingFileError(f"{path} does not exist: give the benchmark's file, or its folder.")
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"the folder {path} has no file that ends with {', '.join(SUFFIXES)}.")
    return files


def _rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    if not _is_csv(file):
        yield from read_rows(file)
        return
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, fieldnames=columns or None)
            for number, row in enumerate(reader, start=1):
                yield number, {str(name): value for name, value in row.items() if name is not None}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file} cannot be read as CSV in UTF-8: {error}.") from error


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _subject(file: Path) -> str:
    """abstract_algebra_test.csv -> abstract_algebra"""
    name, _, split = file.stem.rpartition("_")
    return name if name and split in ("test", "val", "dev") else file.stem
