"""Rows of a data file, in any format of the library -> questions with their gold answers."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import DataError
from main.loaders.files import read_rows, row_word
from main.loaders.messages import dialogue_problems
from main.loaders.report import Report
from main.vision import locate_visuals

_KINDS = ("conversations", "prompt", "context", "query")


class Item(NamedTuple):
    """One question.

    idx: place of the row among the rows, from 0.
    query: the last user turn: its text, or the message where it is more than text.
    history: the messages before it.
    answer: the gold answer or answers; None where the row has none.
    """

    idx: int
    query: str | dict[str, Any] | list[Any]
    history: list[Any]
    answer: str | list[Any] | None


def read_items(path: str | Path) -> list[Item]:
    """All questions of a file: a JSON array, or one JSON object a line.

    Raises:
        MissingFileError: there is no such file.
        DataError: rows that cannot be used, all in one message, or no row at all.
    """
    report = Report()
    rows = read_rows(path, on_bad=lambda number, text: _refuse(report, number, [text]))
    items = _items(rows, report, Path(path), row_word(path))
    for item in items:
        _locate_images(item, Path(path).parent)
    return items


def items_of(rows: Iterable[Mapping[str, Any]]) -> list[Item]:
    """All questions of rows in memory; raises as read_items does."""
    return _items(enumerate(rows, start=1), Report(), Path("data"), "row")


def _items(
    rows: Iterator[tuple[int, Mapping[str, Any]]], report: Report, path: Path, word: str
) -> list[Item]:
    items: list[Item] = []
    for number, row in rows:
        problems = _problems(row)
        if problems:
            _refuse(report, number, problems)
        else:
            report.rows += 1
            items.append(_item(len(items), row))
    report.raise_bad(path, word)
    if not items:
        raise DataError(f"{path} has no rows: there is nothing to answer.")
    return items


def _locate_images(item: Item, folder: Path) -> None:
    """Relative paths begin at the file too; a missing image fails when its row is asked."""
    asked = item.query if isinstance(item.query, list) else [item.query]
    locate_visuals([m for m in (*item.history, *asked) if isinstance(m, Mapping)], folder)


def _refuse(report: Report, number: int, problems: list[str]) -> None:
    report.rows += 1
    report.refuse(number, problems)


def _problems(row: Any) -> list[str]:
    if not isinstance(row, Mapping):
        return [f"a row must be an object; found {type(row).__name__}."]
    if "conversations" in row:
        return _dialogue_problems(row["conversations"], "conversations")
    if isinstance(row.get("prompt"), list):
        return _dialogue_problems(row["prompt"], "prompt")
    for name in ("prompt", "context"):
        if name in row:
            return _text_problems(row[name], name)
    if "query" in row:
        return _query_problems(row["query"]) + _history_problems(row.get("history"))
    return [f"a row needs one of {', '.join(map(repr, _KINDS))}; found {sorted(map(str, row))}."]


def _dialogue_problems(messages: Any, field: str) -> list[str]:
    question = messages[:-1] if _ends_with_answer(messages) else messages
    if isinstance(messages, list) and messages and not question:
        return [f"'{field}' has an answer and no user turn before it."]
    return dialogue_problems(question, field, "question")


def _text_problems(text: Any, field: str) -> list[str]:
    if not isinstance(text, str):
        return [f"'{field}' must be a string; found {type(text).__name__}."]
    return [] if text.strip() else [f"'{field}' is empty."]


def _query_problems(query: Any) -> list[str]:
    if isinstance(query, Mapping | list):
        return [] if query else ["'query' is empty."]
    return _text_problems(query, "query")


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


def _item(idx: int, row: Mapping[str, Any]) -> Item:
    gold = row.get("answer", row.get("anwer"))
    if "conversations" in row:
        return _from_dialogue(idx, row["conversations"], row.get("gold_answers"))
    if isinstance(row.get("prompt"), list):
        return _from_dialogue(idx, row["prompt"], gold)
    if "prompt" in row:
        return Item(idx, row["prompt"], [], gold)
    if "context" in row:
        return Item(idx, row["context"], [], row.get("target"))
    return Item(idx, row["query"], list(row.get("history") or []), gold)


def _from_dialogue(idx: int, messages: list[Any], gold: Any) -> Item:
    if _ends_with_answer(messages):
        gold = messages[-1].get("content") if gold is None else gold
        messages = messages[:-1]
    last = messages[-1]
    plain = last["role"] == "user" and isinstance(last["content"], str)
    return Item(idx, last["content"] if plain else last, list(messages[:-1]), gold)


def _ends_with_answer(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, Mapping) and last.get("role") == "assistant"
