"""The file of responses: one writer, whole lines on the disk, continued where a run stopped.

While a run is unfinished the folder `<save_path>.parts` stands beside the file:

    lock               held by the run that writes; the system lets it go when the process dies
    input.json         number and hash of the input's rows: what the lines are answers to
    part-<rank>.jsonl  the lines of each of several processes; a single one writes to the file
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from main.errors import ConfigError, DataError
from main.evaluation.items import Item
from main.utils.disk import appearing, flush

_LOCK, _STAMP = "lock", "input.json"
_START = b'{"idx": '  # of every line that encode_line makes
# What str.splitlines takes for the end of a line and JSON leaves as it is.
_SEPARATORS = re.compile("[\x85\u2028\u2029]")
_WAY_OUT = "Name another file, or lose this one with overwrite=True."


class Counts(NamedTuple):
    """Rows in the file, and how many of them failed."""

    rows: int
    failed: int


class Line(NamedTuple):
    """Where the answer to a row stands: a file, its first byte there, and its bytes."""

    idx: int
    failed: bool
    path: Path
    start: int
    size: int


def encode_line(item: Item, response: str | None, error: str | None) -> bytes:
    """One row of the file: exactly one line of UTF-8, whatever its texts contain."""
    row = {"idx": item.idx, "query": item.query, "history": item.history, "response": response}
    if item.answer is not None:
        row["answer"] = item.answer
    if error is not None:
        row["error"] = error
    return _encode(row) + b"\n"


def _encode(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, default=lambda other: f"<{type(other).__name__}>")
    text = _SEPARATORS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    # Half of a surrogate pair has no UTF-8; Python's escape of it is JSON's as well.
    return text.encode("utf-8", "backslashreplace")


class Appender:
    """Adds lines to the end of a file; `append` returns when they are on the disk."""

    def __init__(self, path: Path):
        # Unbuffered: closing after a failed write has nothing left to write.
        self._stream = path.open("ab", buffering=0)
        flush(path.parent)

    def append(self, lines: Sequence[bytes]) -> None:
        data = memoryview(b"".join(lines))
        while data:
            data = data[self._stream.write(data) :]
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        self._stream.close()


class Outputs:
    """The file of responses to `items`, and the folder of an unfinished run beside it.

    `prepare`, `finish` and `release` are for the main process; the others use only the paths.
    """

    def __init__(self, save_path: str | Path, items: Sequence[Item]):
        self.save_path = Path(save_path)
        if self.save_path.is_dir():
            raise ConfigError(f"save_path={str(save_path)!r} is a folder; name a file in it.")
        self.items = items
        self.folder = self.save_path.with_name(f"{self.save_path.name}.parts")
        self.input_hash = _hash(items)
        self._lock: BinaryIO | None = None

    def part(self, rank: int) -> Path:
        """Where one of several processes writes its lines."""
        return self.folder / f"part-{rank}.jsonl"

    def prepare(self, overwrite: bool, retry_failed: bool) -> set[int]:
        """Take the file for this run; returns the rows that are answered already.

        Raises:
            ConfigError: another run has it.
            DataError: the file holds something else than answers to these rows.
        """
        self._acquire()
        if overwrite:
            self._empty(keep={_LOCK})
            self.save_path.unlink(missing_ok=True)
        lines = self._lines()
        self._check_input(lines)
        kept = [line for line in lines if not (line.failed and retry_failed)]
        self._write_stamp()
        self._settle(kept)
        self._empty(keep={_LOCK, _STAMP})
        return {line.idx for line in kept}

    def finish(self) -> Counts:
        """Put all lines into the file, in the order of the rows, and end the unfinished run."""
        lines = self._lines()
        assert [line.idx for line in lines] == list(range(len(self.items)))
        self._settle(lines)
        self._empty(keep={_LOCK})
        return Counts(len(lines), sum(line.failed for line in lines))

    def release(self) -> None:
        """Let other runs have the file; does nothing in a process that does not hold it."""
        if self._lock is None:
            return
        with self._lock:
            (self.folder / _LOCK).unlink(missing_ok=True)
        self._lock = None
        with contextlib.suppress(OSError):  # not empty: the run is unfinished
            self.folder.rmdir()

    # -- the lock

    def _acquire(self) -> None:
        path = self.folder / _LOCK
        while self._lock is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            stream = path.open("ab")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                raise ConfigError(
                    f"Another run is writing {self.save_path}. Wait for it, or name another file."
                ) from None
            if _stands(stream, path):
                self._lock = stream
            else:  # its last holder removed it just before it became ours
                stream.close()

    # -- the lines that are there

    def _lines(self) -> list[Line]:
        """All complete lines, by row; a row that stands in two files is taken once."""
        files = [self.save_path, *sorted(self.folder.glob("part-*.jsonl"))]
        found = {line.idx: line for path in files if path.exists() for line in self._scan(path)}
        return [found[idx] for idx in sorted(found)]

    def _scan(self, path: Path) -> Iterator[Line]:
        start = 0
        with path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                cut = not raw.endswith(b"\n") and raw[: len(_START)] == _START[: len(raw)]
                if not cut:  # the row of a line cut short by a crash is answered again
                    row = _parse(raw, f"{path} line {number}")
                    self._check_question(row, f"{path} line {number}")
                    yield Line(row["idx"], "error" in row, path, start, len(raw))
                start += len(raw)

    def _check_question(self, row: dict[str, Any], place: str) -> None:
        idx = row["idx"]
        if idx >= len(self.items):
            return  # of a longer input, which is refused as a whole
        expected = encode_line(self.items[idx], row["response"], row.get("error"))
        if row != json.loads(expected):
            raise DataError(f"{place} answers another question than row {idx} has now. {_WAY_OUT}")

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
            new.write_bytes(_encode({"rows": len(self.items), "sha256": self.input_hash}))

    def _read_stamp(self) -> dict[str, Any] | None:
        path = self.folder / _STAMP
        return json.loads(path.read_bytes()) if path.exists() else None

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
        digest.update(encode_line(item, None, None))
    return digest.hexdigest()


def _parse(raw: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(raw)
    except ValueError:
        row = None
    if not (isinstance(row, dict) and isinstance(row.get("idx"), int) and "response" in row):
        raise DataError(f"{place} is not a line of responses: {raw[:40]!r}. {_WAY_OUT}")
    return row


def _stands(stream: BinaryIO, path: Path) -> bool:
    """Whether the open file still has this name."""
    return path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat())
