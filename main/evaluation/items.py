"""Rows of a data file, in any format of the library -> questions with their gold answers."""

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from main.errors import ConfigError, DataError, MissingFileError
from main.loaders import resolve
from main.loaders.format import Question
from main.loaders.places import source_of
from main.loaders.question import text_question
from main.loaders.registry import LOADERS, find_format
from main.loaders.report import Report
from main.loaders.shapes import asking_shape
from main.loaders.sources import Source
from main.loaders.strict_json import NotJson, check_shape
from main.vision import locate_visuals

logger = logging.getLogger("main.evaluation")

# Fields of a line of responses, which no column of a row may stand for.
OWN = ("idx", "query", "history", "response", "thoughts", "answer", "error")
GOLD = ("gold_answers", "answer", "anwer", "target", "completion")


class Item(NamedTuple):
    """One question.

    idx: place of the row among the rows, from 0.
    query: the last user turn: its text, or the message where it is more than text.
    history: the messages before it.
    answer: the gold answer or answers; None where the row has none.
    columns: the row's other fields.
    more: further arguments of the call that asks it: the row's tools and template variables.
    """

    idx: int
    query: str | dict[str, Any] | list[Any]
    history: list[Any]
    answer: str | list[Any] | None
    columns: Mapping[str, Any] = MappingProxyType({})
    more: Mapping[str, Any] = MappingProxyType({})


def read_items(data: Any, split: str | None = None) -> list[Item]:
    """All questions of a file, or of whatever else `main.loaders.resolve` takes.

    Args:
        split: which one is asked, of data that has several.

    Raises:
        MissingFileError: there is no such file.
        DataError: rows that cannot be used, all of a file in one message, or no row at all.
        ConfigError: a split that is not there, or several and none is named.
    """
    source = _split_of(data, split)
    items: list[Item] = []
    for part in source.parts:
        report = Report()

        def on_bad(number: int, problem: str, report: Report = report) -> None:
            _refuse(report, number, [problem])

        found = _items(part.read(on_bad), report, part.name, part.word, len(items))
        for item in found:
            _locate_images(item, part.folder)
        items += found
    return _some(items, source.name)


def items_of(rows: Iterable[Mapping[str, Any]]) -> list[Item]:
    """All questions of rows in memory; raises as read_items does."""
    return _some(_items(enumerate(rows, start=1), Report(), "data", "row", 0), "data")


def _split_of(data: Any, split: str | None) -> Source:
    if isinstance(data, str | Path) and os.path.isdir(data) and split is None:
        raise MissingFileError(
            f"{data} is a folder; name the data file in it, or the split that is asked."
        )
    # A file needs no registry, whatever stands there.
    is_file = isinstance(data, str | Path) and os.path.isfile(Path(data).expanduser())
    found = {"train": source_of(data)} if is_file else resolve(data)
    if split is None and len(found) == 1:
        split = next(iter(found))
    if split not in found:
        raise ConfigError(f"split={split!r} must be one of {list(found)}, those of the data.")
    if found[split].weights:
        raise ConfigError(
            "a weight is a share of what is drawn in training, and every row is asked once; "
            "leave it out."
        )
    return found[split]


def _items(
    rows: Iterator[tuple[int, Mapping[str, Any]]], report: Report, name: str, word: str, first: int
) -> list[Item]:
    items: list[Item] = []
    unkept: dict[str, None] = {}
    for number, row in rows:
        row, item = _read(first + len(items), row)
        if isinstance(item, list):
            _refuse(report, number, item)
        else:
            report.rows += 1
            columns = _columns(row, item.answer)
            unkept |= dict.fromkeys(name for name in OWN if name in columns)
            kept = {name: value for name, value in columns.items() if name not in OWN}
            items.append(item._replace(columns=kept))
    report.raise_bad(name, word)
    if unkept:
        logger.warning(
            "Columns of the rows that are not kept: %s. The lines of responses have fields of "
            "these names.",
            ", ".join(map(repr, unkept)),
        )
    return items


def _some(items: list[Item], name: str) -> list[Item]:
    if not items:
        raise DataError(f"{name} has no rows: there is nothing to answer.")
    return items


def _columns(row: Mapping[str, Any], gold: Any) -> dict[str, Any]:
    """What a row has beside its question and its gold answer."""
    form = find_format(row)
    marks = form.marks if form else [("query",)]
    asked = {mark[0] for mark in marks if all(field in row for field in mark)}
    if form is None:
        asked.add("history")
    return {
        str(name): value
        for name, value in row.items()
        if name not in asked and not (name in GOLD and value is gold)
    }


def _locate_images(item: Item, folder: Path) -> None:
    """Relative paths begin at the file too; a missing image fails when its row is asked."""
    asked = item.query if isinstance(item.query, list) else [item.query]
    locate_visuals([m for m in (*item.history, *asked) if isinstance(m, Mapping)], folder)


def _refuse(report: Report, number: int, problems: list[str]) -> None:
    report.rows += 1
    report.refuse(number, problems)


def _read(idx: int, row: Any) -> tuple[Any, Item | list[str]]:
    """(the row as one of ours, its question or what keeps it from being asked)."""
    shape = asking_shape(row) if isinstance(row, Mapping) else None
    if shape is None:
        return row, _item(idx, row)
    try:
        row = shape.as_own(dict(row))
    except DataError as error:
        return row, [str(error)]
    item = _item(idx, row)
    return row, [shape.told(problem) for problem in item] if isinstance(item, list) else item


def _item(idx: int, row: Any) -> Item | list[str]:
    """The row's question as its own format reads it, or what keeps it from being asked."""
    if not isinstance(row, Mapping):
        return [f"a row must be an object; found {type(row).__name__}."]
    try:
        check_shape(row)
    except NotJson as error:
        return [str(error)]
    form = find_format(row)
    if form is None:
        return _plain_item(idx, row)
    question = form.question(dict(row))
    return question if isinstance(question, list) else _of_question(idx, question)


def _of_question(idx: int, question: Question) -> Item:
    if isinstance(question.prompt, str):
        return Item(idx, question.prompt, [], question.gold)
    more = {**(question.variables or {}), **({"tools": question.tools} if question.tools else {})}
    *history, last = question.prompt
    plain = last["role"] == "user" and isinstance(last["content"], str)
    query = last["content"] if plain else last
    return Item(idx, query, history, question.gold, more=more)


def _plain_item(idx: int, row: Mapping[str, Any]) -> Item | list[str]:
    """{"query": ..., "history": [...]}: what a predictor takes, which is no format of training."""
    if "query" in row:
        problems = _query_problems(row["query"]) + _history_problems(row.get("history"))
        gold = row.get("answer", row.get("anwer"))
        return problems or Item(idx, row["query"], list(row.get("history") or []), gold)
    names = [form.marks[0][0] for form in reversed(LOADERS.values())]
    fields = ", ".join(map(repr, dict.fromkeys([*names, "query"])))
    return [f"a row needs one of {fields}; found {sorted(map(str, row))}."]


def _query_problems(query: Any) -> list[str]:
    if isinstance(query, Mapping | list):
        return [] if query else ["'query' is empty."]
    question = text_question(query, "query")
    return question if isinstance(question, list) else []


def _history_problems(history: Any) -> list[str]:
    if history is None:
        return []
    if not isinstance(history, list):
        return [f"'history' must be a list of messages; found {type(history).__name__}."]
    return [
        f"history[{i}] must be an object with 'role' and 'content'; found {type(message).__name__}."
        for i, message in enumerate(history)
        if not (isinstance(message, Mapping) and "role" in message)
    ]
