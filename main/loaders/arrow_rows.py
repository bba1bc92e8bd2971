"""Rows of Parquet and Arrow files and of data sets in memory, a few records at a time."""

import base64
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import DataError
from main.loaders import strict_json
from main.loaders.format import OnBad

if TYPE_CHECKING:
    import datasets
    import pyarrow

_AT_ONCE = 64  # records made Python objects together


def read_parquet(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (record from 1, row); see `read_rows`."""
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from rows_of(file.iter_batches(_AT_ONCE), on_bad)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def read_arrow(path: Path, on_bad: OnBad) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (record from 1, row) of the file or the stream; see `read_rows`."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as stream:
            yield from rows_of(_batches(stream), on_bad)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from error


def read_dataset(
    dataset: "datasets.Dataset", on_bad: OnBad
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row from 1, row) of a data set in memory, as selected and shuffled."""
    tables = dataset.with_format("arrow").iter(batch_size=_AT_ONCE)
    yield from rows_of((batch for table in tables for batch in table.to_batches()), on_bad)


def rows_of(
    batches: Iterable["pyarrow.RecordBatch"], on_bad: OnBad
) -> Iterator[tuple[int, dict[str, Any]]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _AT_ONCE):
            for record in batch.slice(start, _AT_ONCE).to_pylist():
                number += 1
                row = _present(record)
                try:
                    strict_json.check(row)
                except strict_json.NotJson as error:
                    on_bad(number, str(error))
                else:
                    yield number, row


def _batches(stream: Any) -> Iterator["pyarrow.RecordBatch"]:
    import pyarrow

    try:
        reader = pyarrow.ipc.open_file(stream)
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        yield from pyarrow.ipc.open_stream(stream)
    else:
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _present(value: Any) -> Any:
    """Without the nulls with which a table fills fields that a row does not have.

    Pictures in the table become data URLs, other values that JSON does not have become text.
    """
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes) and value.keys() <= {"bytes", "path"}:
            return f"data:;base64,{base64.b64encode(value['bytes']).decode()}"
        return {key: _present(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_present(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _damaged(path: Path, error: Exception) -> DataError:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{path} is a damaged or unfinished table: {first}")
