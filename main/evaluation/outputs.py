"""The file of responses: one writer, whole lines on the disk, continued where a run stopped.

While a run is unfinished the folder `<save_path>.parts` stands beside the file:

    lock               held by the run that writes, see `main.system.locks`
    input.json         number and hash of the input's rows: what the lines are answers to
    part-<rank>.jsonl  the lines of each of several processes; a single one writes to the file

What stays is the file, and who answered it: see `main.evaluation.answered_by`.
"""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError, DataError, InUseError
from main.evaluation import answered_by
from main.evaluation.items import Item
from main.evaluation.lines import START, Reply, encode_line, to_json
from main.system.disk import appearing
from main.system.locks import Lock, take

_LOCK, _STAMP = "lock", "input.json"
_WAY_OUT = "Name another file, or lose this one with overwrite=True."


class Counts(NamedTuple):
    """Rows in the file, and how many of them failed."""

    rows: int
    failed: int


class Earlier(NamedTuple):
    """What earlier runs left: rows that are done, those of them that failed, who answered."""

    done: set[int]
    failed: set[int]
    record: answered_by.Record


class Line(NamedTuple):
    """Where the answer to a row stands: a file, its first byte there, and its bytes."""

    idx: int
    failed: bool
    path: Path
    start: int
    size: int


class Outputs:
    """The file of responses to `items`, and the folder of an unfinished run beside it.

    `prepare`, `finish` and `release` are for the main process; the others use only the paths.
    split: thoughts stand in a field of their own.
    """

    def __init__(self, save_path: str | Path, items: Sequence[Item], split: bool = False):
        self.split = split
        self.save_path = Path(save_path).expanduser()
        if self.save_path.is_dir():
            raise ConfigError(f"save_path={str(save_path)!r} is a folder; name a file in it.")
        self.items = items
        self.folder = self.save_path.with_name(f"{self.save_path.name}.parts")
        self.input_hash = _hash(items)
        self._lock: Lock | None = None

    def part(self, rank: int) -> Path:
        """Where one of several processes writes its lines."""
        return self.folder / f"part-{rank}.jsonl"

    def prepare(self, overwrite: bool, retry_failed: bool) -> Earlier:
        """Take the file for this run; returns what is there already.

        Raises:
            ConfigError: another run has it.
            DataError: the file holds something else than answers to these rows.
        """
        self._acquire()
        if overwrite:
            self._empty(keep={_LOCK})
            self.save_path.unlink(missing_ok=True)
            answered_by.record_path(self.save_path).unlink(missing_ok=True)
        lines = self._lines()
        self._check_input(lines)
        kept = [line for line in lines if not (line.failed and retry_failed)]
        record = self._record(kept)
        self._write_stamp()
        self._settle(kept)
        self._empty(keep={_LOCK, _STAMP})
        failed = {line.idx for line in kept if line.failed}
        return Earlier({line.idx for line in kept}, failed, record)

    def finish(self) -> Counts:
        """Put all lines into the file, in the order of the rows, and end the unfinished run."""
        lines = self._lines()
        assert [line.idx for line in lines] == list(range(len(self.items)))
        self._settle(lines)
        self._record(lines)
        self._empty(keep={_LOCK})
        return Counts(len(lines), sum(line.failed for line in lines))

    def release(self) -> None:
        """Let other runs have the file; does nothing in a process that does not hold it."""
        if self._lock is None:
            return
        self._lock.release()
        self._lock = None
        with contextlib.suppress(OSError):  # not empty: the run is unfinished
            self.folder.rmdir()

    # -- the lock

    def _acquire(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = take(self.folder / _LOCK, "a run")
        except InUseError as error:
            raise ConfigError(
                f"Another run is writing {self.save_path}. Wait for it, or name another file. "
                f"({error})"
            ) from error

    # -- the lines that are there

    def _lines(self) -> list[Line]:
        """All complete lines, by row; a row that stands in two files is taken once."""
        there = [path for path in self._files() if path.exists()]
        found = {line.idx: line for path in there for line in self._scan(path)}
        return [found[idx] for idx in sorted(found)]

    def _files(self) -> list[Path]:
        return [self.save_path, *sorted(self.folder.glob("part-*.jsonl"))]

    def _scan(self, path: Path) -> Iterator[Line]:
        start = 0
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                cut = not raw.endswith(b"\n") and raw[: len(START)] == START[: len(raw)]
                if not cut:  # the row of a line cut short by a crash is answered again
                    row = _parse(raw, f"{path} line {number}")
                    self._check_question(row, f"{path} line {number}")
                    yield Line(row["idx"], "error" in row, path, start, len(raw))
                start += len(raw)

    def _check_question(self, row: dict[str, Any], place: str) -> None:
        idx = row["idx"]
        if idx >= len(self.items):
            return  # of a longer input, which is refused as a whole
        reply = Reply(row["response"], row.get("error"), row.get("thoughts"))
        if row != json.loads(encode_line(self.items[idx], reply)):
            raise DataError(f"{place} answers another question than row {idx} has now. {_WAY_OUT}")
        if reply.error is None and (reply.thoughts is not None) != self.split:
            raise ConfigError(
                f"{place} was written with split_thoughts={not self.split}, and now it is "
                f"{self.split}. {_WAY_OUT}"
            )

    def _check_input(self, lines: list[Line]) -> None:
        stamp = self._read_stamp()
        rows = stamp["rows"] if stamp else len(lines)
        changed = stamp["sha256"] != self.input_hash if stamp else rows != len(self.items)
        if lines and changed:
            content = ", of other content" if rows == len(self.items) else ""
            raise DataError(
                f"{self.save_path} belongs to another input: {rows} rows then, "
                f"{len(self.items)} now{content}. {_WAY_OUT}"
            )

    # -- what stands on the disk

    def _write_stamp(self) -> None:
        with appearing(self.folder / _STAMP) as new:
            new.write_bytes(to_json({"rows": len(self.items), "sha256": self.input_hash}))

    def _read_stamp(self) -> dict[str, Any] | None:
        path = self.folder / _STAMP
        return json.loads(path.read_bytes()) if path.exists() else None

    def _record(self, lines: list[Line]) -> answered_by.Record:
        """Who answered these lines, as it now stands beside the file."""
        if not lines:
            answered_by.record_path(self.save_path).unlink(missing_ok=True)
            return answered_by.Record()
        record = answered_by.read(self._files())
        answered_by.write(record, self.save_path)
        return record

    def _empty(self, keep: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in keep:
                path.unlink()

    def _settle(self, lines: list[Line]) -> None:
        """Make the file consist of these lines, in this order, wherever they stand now."""
        if not self._holds(lines):
            self._write(lines)

    def _holds(self, lines: list[Line]) -> bool:
        end = 0
        for line in lines:
            if (line.path, line.start) != (self.save_path, end):
                return False
            end += line.size
        return end == (self.save_path.stat().st_size if self.save_path.exists() else 0)

    def _write(self, lines: list[Line]) -> None:
        with appearing(self.save_path, self.folder) as new, contextlib.ExitStack() as stack:
            paths = {line.path for line in lines}
            sources = {path: stack.enter_context(path.open("rb")) for path in paths}
            target = stack.enter_context(new.open("wb"))
            for line in lines:
                sources[line.path].seek(line.start)
                target.write(sources[line.path].read(line.size))


def _hash(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        try:
            digest.update(encode_line(item, Reply(None)))
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"row {item.idx + 1} cannot be written as JSON: {error}. Give texts, numbers, "
                "lists and objects with texts as keys."
            ) from error
    return digest.hexdigest()


def _parse(raw: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError):
        row = None
    if not (isinstance(row, dict) and isinstance(row.get("idx"), int) and "response" in row):
        raise DataError(f"{place} is not a line of responses: {raw[:40]!r}. {_WAY_OUT}")
    return row
