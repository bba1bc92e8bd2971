"""What a process writes: outcomes, as lines that are on the disk before the next batch is asked."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from main.evaluation.asking import Outcome, error_text
from main.evaluation.lines import Reply, encode_line, split_thoughts
from main.system.disk import flush

logger = logging.getLogger("main.evaluation")


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


class Book:
    """The lines that this process writes."""

    def __init__(self, path: Path, split: bool):
        self._appender, self._split, self._warned = Appender(path), split, False

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: Any) -> None:
        self._appender.close()

    def enter(self, outcomes: list[Outcome]) -> None:
        """Write what became of rows; the first failure is told."""
        if outcomes:
            self._appender.append([encode_line(o.item, self._reply(o)) for o in outcomes])

    def _reply(self, outcome: Outcome) -> Reply:
        if outcome.error is None:
            response = str(outcome.response)
            return split_thoughts(response) if self._split else Reply(response)
        error = error_text(outcome.error)
        if not self._warned:
            self._warned = True
            logger.warning(
                "Row %d failed: %s. Its line says so; further failures are only counted.",
                outcome.item.idx,
                error,
            )
        return Reply(None, error)
