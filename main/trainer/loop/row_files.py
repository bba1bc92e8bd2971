"""Files of a run that grow by rows; a resumed run keeps those up to where it goes on.

`CsvLog` has columns, `JsonLog` a JSON object a line. Both are mended at their end first, where a
crash may have left half a row.
"""

import csv
import io
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from main.system.disk import appearing, flush, told

log = logging.getLogger(__name__)


class RowFile(ABC):
    """A file of rows, each of which has its `step`."""

    def __init__(self, path: Path, resume_step: int | None):
        """resume_step: keep rows up to this step; None starts a new file beside an older one.

        Every method raises DiskError for what the disk refuses.
        """
        self.path = path
        with told(path):
            self._begin(resume_step)

    @abstractmethod
    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row at the end."""

    @abstractmethod
    def _parsed(self, text: str) -> tuple[list[dict[str, Any]], bool]:
        """The rows of whole lines, and whether all of them are rows."""

    @abstractmethod
    def _write(self, file: Any, rows: Iterable[Mapping[str, Any]]) -> None:
        """The whole file anew."""

    def flush(self) -> None:
        if self.path.is_file():
            with told(self.path):
                flush(self.path)

    def _begin(self, resume_step: int | None) -> list[dict[str, Any]]:
        """The rows that stay."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._read()
        if self.path.is_file() and (resume_step is None or not rows):
            self.path.rename(_unused(self.path))  # another run's, or nothing that could be mended
            return []
        if resume_step is None or not rows:
            return []
        self._keep([row for row in rows if int(row["step"]) <= resume_step], rows)
        return rows

    def _keep(self, kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        self._rewrite(kept)

    def _read(self) -> list[dict[str, Any]]:
        """The rows; what a crash left at the end of the file, and no row can be, is dropped."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes().decode("utf-8", errors="replace")
        ended = text[: text.rfind("\n") + 1]  # a last line without its end was cut
        rows, whole = self._parsed(ended.replace("\0", ""))
        if not whole or ended != text:
            log.warning("%s was damaged: what is no row of it is dropped.", self.path)
        return rows

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with (
            appearing(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            self._write(file, rows)
            file.flush()


class CsvLog(RowFile):
    """A CSV file; a new column rewrites it once, with the old rows kept."""

    def append(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name not in self._columns]
        with told(self.path):
            if new:
                old = self._read()
                self._columns += new
                self._rewrite([*old, row])
                return
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _begin(self, resume_step: int | None) -> list[dict[str, Any]]:
        self._columns: list[str] = []
        return super()._begin(resume_step)

    def _keep(self, kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        self._columns = list(rows[0])  # also where no row stays
        self._rewrite(kept)

    def _parsed(self, text: str) -> tuple[list[dict[str, Any]], bool]:
        rows: list[dict[Any, Any]] = list(csv.DictReader(io.StringIO(text, newline="")))
        whole = [row for row in rows if _is_whole(row)]
        return whole, len(whole) == len(rows)

    def _write(self, file: Any, rows: Iterable[Mapping[str, Any]]) -> None:
        writer = csv.DictWriter(file, self._columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


class JsonLog(RowFile):
    """A JSON Lines file; it appears with its first row."""

    def append(self, row: Mapping[str, Any]) -> None:
        with told(self.path), self.path.open("a", encoding="utf-8") as file:
            self._write(file, [row])

    def _keep(self, kept: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        if kept:
            self._rewrite(kept)
        else:
            self.path.unlink()

    def _parsed(self, text: str) -> tuple[list[dict[str, Any]], bool]:
        return json_rows(text)

    def _write(self, file: Any, rows: Iterable[Mapping[str, Any]]) -> None:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_rows(text: str) -> tuple[list[dict[str, Any]], bool]:
    """The lines that are objects with a step, and whether all of them are."""
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [row for line in lines if (row := _object(line)) and type(row.get("step")) is int]
    return rows, len(rows) == len(lines)


def _object(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _is_whole(row: dict[Any, Any]) -> bool:
    """Every column is there, none besides, and the first is a step."""
    return None not in row and None not in row.values() and str(row.get("step")).isdecimal()


def _unused(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    candidate = path.with_name(f"{path.stem}-{stamp}{path.suffix}")
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{stamp}-{number}{path.suffix}")
    return candidate
