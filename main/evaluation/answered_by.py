"""Who answered a file of responses: kept in `<save_path>.answered_by.json` beside it.

It is on the disk before the first response is, so that a killed run leaves no nameless ones; the
file of responses itself has nothing but rows. Of each of several processes it stands beside its
part of the file until the run is finished.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from main.errors import ConfigError, DataError
from main.predictor.answerer import Answerer, Note
from main.system.disk import appearing

logger = logging.getLogger("main.evaluation")

_NOBODY = "a model that was not recorded"


@dataclass
class Record:
    """Who answered a file.

    answerers: in the order in which they were first asked.
    settings: of the first call, see `Note`.
    nameless: how many responses are of nobody known.
    """

    answerers: list[Answerer] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    nameless: int = 0

    def __str__(self) -> str:
        names = [str(one) for one in self.answerers]
        return " and ".join(names + [_NOBODY] * bool(self.nameless or not names))

    def joined(self, other: "Record") -> "Record":
        answerers = list(dict.fromkeys([*self.answerers, *other.answerers]))
        nameless = max(self.nameless, other.nameless)
        return Record(answerers, self.settings or other.settings, nameless)


def record_path(path: Path) -> Path:
    """Where the record of a file of responses is."""
    return path.with_name(f"{path.name}.answered_by.json")


def read(paths: Iterable[Path]) -> Record:
    """Of a file and its parts together; empty where there is none.

    Raises:
        DataError: a file that is no such record.
    """
    record = Record()
    for path in map(record_path, paths):
        if path.exists():
            record = record.joined(_read(path))
    return record


def write(record: Record, path: Path) -> None:
    """Beside the file of responses `path`; nothing where nobody is known."""
    if not record.answerers:
        return
    content = asdict(record) | {"answerers": [one._asdict() for one in record.answerers]}
    with appearing(record_path(path)) as new:
        new.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


class Watch:
    """Compares who is asked with who answered the rows that are in the file already.

    Args:
        save_path: the file, for messages.
        earlier: its record.
        rows: how many rows of it were answered earlier; 0 = a file that begins now.
        path: the file or part that this process writes.
    """

    def __init__(self, save_path: Path, earlier: Record, rows: int, path: Path):
        self.save_path, self.rows, self.path = save_path, rows, path
        self.earlier, self.record = earlier, earlier
        self._told = False

    def hear(self, calls: list[Note]) -> None:
        """Take note of the calls, and forget them; the record is on the disk afterwards.

        Raises:
            ConfigError: somebody else than answered the rows before.
        """
        for answerer in dict.fromkeys(call.answerer for call in calls):
            if answerer.digest not in [one.digest for one in self.record.answerers]:
                self._refuse_another(answerer)
                self._add(answerer, calls[0].settings)
        self._tell_once(calls)
        calls.clear()

    def _refuse_another(self, answerer: Answerer) -> None:
        if not (self.rows and self.earlier.answerers):
            return
        names = [(one.model, one.adapter) for one in self.earlier.answerers]
        same = " of other content" if (answerer.model, answerer.adapter) in names else ""
        raise ConfigError(
            f"{self.save_path} has {self.rows} rows answered by {self.earlier}, and the batcher "
            f"asks {answerer}{same}. Answers of two models are not mixed in a file: name another "
            "one, or lose this one with overwrite=True."
        )

    def _add(self, answerer: Answerer, settings: dict[str, Any]) -> None:
        nameless = self.rows if not self.record.answerers else self.record.nameless
        added = Record([answerer], settings, nameless)
        self.record = self.record.joined(added)
        write(self.record, self.path)

    def _tell_once(self, calls: list[Note]) -> None:
        """What continues otherwise than it began."""
        if self._told or not self.rows:
            return
        self._told = True
        begun = self.earlier.settings
        if not (calls and self.earlier.answerers):
            now = self.record.answerers[-1] if calls else _NOBODY
            logger.warning(
                "%s: %d rows were answered before, by %s; the others are by %s.",
                self.save_path, self.rows, self.earlier, now,
            )  # fmt: skip
        elif begun != calls[0].settings:
            changed = _changes(begun, calls[0].settings)
            logger.warning("%s is continued with other settings: %s.", self.save_path, changed)


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    then, later = ({k: repr(v) for k, v in settings.items()} for settings in (before, now))
    return ", ".join(
        f"{name} {then.get(name, 'default')} then, {later.get(name, 'default')} now"
        for name in names
    )


def _read(path: Path) -> Record:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        answerers = [Answerer(**one) for one in content.pop("answerers")]
        return Record(answerers, **content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} does not say who answered {path.name.removesuffix('.answered_by.json')}: "
            f"{error}. Delete it to go on without."
        ) from error
