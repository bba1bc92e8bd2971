"""What the index of somebody else would start: chromadb loads models that a collection names."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from main.errors import ConfigError

DATABASE = "chroma.sqlite3"
HARMLESS = ("legacy", "unknown")  # kinds of embedding functions that name nothing


def refuse_embedding_functions(folder: Path) -> None:
    """Look before the database is opened by chromadb, which acts on what it reads.

    Raises:
        ConfigError: a collection names an embedding function, or says what is no JSON.
    """
    for text in _settings(folder / DATABASE):
        try:
            found = [one for one in _embedding_functions(json.loads(text)) if _acts(one)]
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the index in {folder} cannot be used: {error}.") from error
        if found:
            raise ConfigError(
                f"the index in {folder} names the embedding function {str(found[0])[:80]!r}, which "
                "would be loaded with whatever code it brings. Indexes made here name none: build "
                "a new one in another folder (--index)."
            )


def _acts(function: Any) -> bool:
    return not (isinstance(function, dict) and function.get("type") in HARMLESS)


def _settings(file: Path) -> Iterator[str]:
    """Of every collection; nothing of what is no such database: chromadb says so."""
    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            rows = database.execute("SELECT * FROM collections")
            names = [column[0] for column in rows.description]
            for row in rows:
                cells = dict(zip(names, row, strict=True))
                yield from (cells[n] for n in ("config_json_str", "schema_str") if cells.get(n))
    except sqlite3.Error:
        return


def _embedding_functions(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        if value.get("embedding_function") is not None:
            yield value["embedding_function"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _embedding_functions(inner)
