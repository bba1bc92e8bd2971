"""Rows -> an Arrow file of encoded rows, made once and memory-mapped ever after.

The cache's key is made of everything that changes the ids: the rows' content, the row format, the
tokenizer with its chat template and variables, the settings for images, and the limit. Rows are
encoded in batches and written at once, so that a file of any size needs the memory of a batch.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.dialogue.plain import PlainText
from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.loaders.fields import visual_parts
from main.loaders.format import Format, Numbered
from main.loaders.places import source_of
from main.loaders.registry import get_loader
from main.loaders.report import Report
from main.loaders.shapes import shape_of
from main.loaders.sources import Part, file_digest
from main.system.disk import appearing
from main.system.folders import cache_folder
from main.system.locks import beside, in_turn
from main.system.processes import one_first
from main.vision import locate_sources, locate_visuals

if TYPE_CHECKING:
    import datasets
    import pyarrow

_BATCH = 256  # rows; long ones take about 100 bytes a token while they are encoded


def load_dataset_split(
    data: Any,
    loader: str | Format,
    template: ChatTemplate | PlainText,
    max_length: int | None = None,
    cache_dir: str | Path | None = None,
) -> "datasets.Dataset":
    """Encode rows, or map what an earlier call made of the same rows in the same way.

    Args:
        data: a file, a list of files, a list of rows, a `datasets.Dataset`, or what `resolve`
            returned for a split, whose weights say nothing here: every row comes once.
        loader: a loader name or its format.
        template: what `get_template` returned for that loader.
        max_length: tokens a row may have; None = unlimited.
        cache_dir: instead of the `main` folder in the cache of Hugging Face datasets.

    Returns:
        The columns of the format; `row` is the number of the row in its own file.

    Raises:
        MissingFileError: no such file.
        DataError: rows that cannot be used, all of them in one message (the first 20 and the
            count); or no row at all.
        DiskError: the cache cannot be written.
    """
    from datasets import concatenate_datasets

    parts = source_of(data).parts
    loaded = [load_part(part, loader, template, max_length, cache_dir) for part in parts]
    return loaded[0] if len(loaded) == 1 else concatenate_datasets(loaded)


def load_part(
    part: Part,
    loader: str | Format,
    template: ChatTemplate | PlainText,
    max_length: int | None = None,
    cache_dir: str | Path | None = None,
) -> "datasets.Dataset":
    """The rows of one file, list or data set; see `load_dataset_split`."""
    form = get_loader(loader) if isinstance(loader, str) else loader
    target = cache_folder(cache_dir) / f"{_key(part, form, template, max_length)}.arrow"

    def build() -> tuple["datasets.Dataset", Report]:
        """Of processes that want the same rows at once one makes it, and the others wait."""
        with in_turn(beside(target), f"the encoding of {part.name}"):
            return _open(target) or _build(part, form, template, max_length, target)

    dataset, report = one_first(lambda: _open(target) or build())
    report.log(part.name, part.word, max_length)
    return dataset


def _build(
    part: Part,
    form: Format,
    template: ChatTemplate | PlainText,
    max_length: int | None,
    target: Path,
) -> tuple["datasets.Dataset", Report]:
    """Encode the rows into `target`, which appears when it is complete."""
    report = Report()
    batches = _encoded_batches(part, form, template, max_length, report)
    with appearing(target) as temporary:
        count = _write(temporary, form, batches)
        report.raise_bad(part.name, part.word)
        if not count:
            raise DataError(_why_empty(part, report, max_length))
        digest = file_digest(temporary)
    _write_stamp(target, asdict(report) | {"sha256": digest})
    opened = _open(target)
    if opened is None:
        raise DataError(f"{target} changed while it was written; is the disk sound?")
    return opened


def _encoded_batches(
    part: Part,
    form: Format,
    template: ChatTemplate | PlainText,
    max_length: int | None,
    report: Report,
) -> Iterator[list[dict[str, Any]]]:
    rows = valid_rows(part, form, report)
    while batch := list(islice(rows, _BATCH)):
        # After a bad row nothing will be kept, but the bad rows of the rest are still wanted.
        encoded = list(form.encode(batch, template, max_length, report))
        if not report.bad:
            yield encoded


def valid_rows(part: Part, form: Format, report: Report) -> Iterator[Numbered]:
    """The rows that the format can read; what is wrong with the others is in the report."""

    def on_bad(number: int, problem: str) -> None:
        report.rows += 1
        report.refuse(number, [problem])

    for number, row in part.rows(on_bad):
        report.rows += 1
        problems = form.validate(row) or _located(row, part.folder)
        if problems:
            report.refuse(number, [*part.told(problems), *_hint(part, row, form, report)])
        else:
            report.note_unread(form.unread(row))
            yield number, row


def _hint(part: Part, row: dict[str, Any], form: Format, report: Report) -> list[str]:
    """Once a file: that `auto` makes rows of this format of such rows."""
    shape = None if part.shape or report.bad else shape_of(row)
    if shape is None or shape.is_own or form not in map(get_loader, shape.loaders):
        return []
    return [f"loader_name='auto' reads such rows: {shape.name}."]


def _located(row: dict[str, Any], folder: Path) -> list[str]:
    """Make the paths of images absolute; a sentence for each that does not exist."""
    lists = visual_parts(row)
    dialogues = {name: value for name, value in row.items() if _is_dialogue(value)}
    problems = [
        f"'{name}': {problem}"
        for name, dialogue in dialogues.items()
        if name not in lists
        for problem in locate_visuals(dialogue, folder)
    ]
    for name, sources in lists.items():
        row[name], missing = locate_sources(sources, folder)
        problems += [f"'{name}': {problem}" for problem in missing]
    return problems


def _is_dialogue(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) for m in value)


def _why_empty(part: Part, report: Report, max_length: int | None) -> str:
    if not report.rows:
        return f"{part.name} has no rows; write at least one."
    first = report.fates["skipped"][1]
    return (
        f"{part.name}: none of the {report.rows} rows leaves room for an answer at "
        f"max_length={max_length} (first: {part.word} {first[0]}); raise max_length."
    )


def _write(path: Path, form: Format, batches: Iterator[list[dict[str, Any]]]) -> int:
    import pyarrow

    schema = _schema(form)
    count = 0
    with path.open("wb") as stream, pyarrow.ipc.new_stream(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _schema(form: Format) -> "pyarrow.Schema":
    from datasets import Features, List, Value

    def feature(kind: Any) -> Any:
        return List(feature(kind[0])) if isinstance(kind, list) else Value(kind)

    return Features({name: feature(kind) for name, kind in form.columns.items()}).arrow_schema


def _open(target: Path) -> tuple["datasets.Dataset", Report] | None:
    """The data set and what its making reported; None when it is missing or damaged."""
    import datasets

    stamp = _stamp_path(target)
    try:
        noted = json.loads(stamp.read_text(encoding="utf-8"))
        if noted["sha256"] != file_digest(target) or "unread" not in noted:
            return None
    except (OSError, ValueError, KeyError):
        return None
    fates = {fate: (count, first) for fate, (count, first) in noted["fates"].items()}
    report = Report(rows=noted["rows"], fates=fates, unread=noted["unread"])
    return datasets.Dataset.from_file(str(target)), report


def _write_stamp(target: Path, noted: dict[str, Any]) -> None:
    with appearing(_stamp_path(target)) as temporary:
        temporary.write_text(json.dumps(noted), encoding="utf-8")


def _stamp_path(target: Path) -> Path:
    return target.with_suffix(".json")


def _key(
    part: Part, form: Format, template: ChatTemplate | PlainText, max_length: int | None
) -> str:
    parts = [part.digest(), form.name, form.version, template.fingerprint(), max_length]
    if getattr(template, "vision", None) is not None:  # relative paths of images begin there
        parts += [str(part.folder.absolute()), str(Path.cwd())]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
