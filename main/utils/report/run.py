"""What a run left, read as far as it can be; what is missing or damaged is said."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from main.errors import MissingFileError
from main.models.training_record import FILE, TrainingRecord, plain, read_record
from main.trainer.loop.home import PROGRESS, STATE, WARNINGS
from main.trainer.loop.row_files import json_rows
from main.trainer.loop.run_file import DEFAULTS, METHOD, NAME
from main.utils.curves import Points, csv_rows, read_curves, record_folder
from main.utils.report.samples import Samples, read_samples

T = TypeVar("T")
_CHECKPOINT = re.compile(r"(.+)_(\d+)")
_SAMPLES = re.compile(r"samples_(\d+)\.md")


@dataclass
class Run:
    """All that is shown of a run.

    name: of the task; records, checkpoints: its folders.
    curves: 'train' and 'eval' -> column -> points.
    given, defaults: arguments of constructor and call, without secrets.
    record, checkpoint: of the newest checkpoint that says how it was trained, and its name.
    progress: where that checkpoint was, and what the run is.
    samples: of each epoch; answers: to evaluation rows, of the newest evaluation.
    warnings: step and text; missing: what could not be shown, and why.
    """

    name: str
    records: Path
    checkpoints: Path
    curves: dict[str, dict[str, Points]] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    record: TrainingRecord | None = None
    checkpoint: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    samples: list[Samples] = field(default_factory=list)
    answers: list[dict[str, str]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def points(self, kind: str, name: str) -> Points:
        return self.curves.get(kind, {}).get(name, ([], []))

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments: of the run file, or else of the newest checkpoint."""
        of_file = self.defaults | self.given
        return of_file or ({**self.record.setup, **self.record.call} if self.record else {})

    @property
    def identity(self) -> dict[str, Any]:
        found = self.progress.get("identity")
        return found if isinstance(found, dict) else {}


def read_run(folder: str | Path) -> Run:
    """A run from `save_model/<task>`, `data_record/<task>` or one of its checkpoints.

    Raises:
        MissingFileError: there is no such run.
    """
    given = Path(folder).expanduser()
    records = record_folder(given)
    top = records.parent.parent if records.parent.name == "data_record" else records.parent
    run = Run(records.name, records, top / "save_model" / records.name)
    if not (run.records.is_dir() or run.checkpoints.is_dir()):
        raise MissingFileError(
            f"'{folder}' is no run: neither {run.checkpoints} nor {run.records} is there. Name "
            "save_model/<task_name> of a run."
        )
    _read_records(run)
    _read_checkpoints(run)
    _read_run_file(run)
    return run


def _read_records(run: Run) -> None:
    for kind, without in (("train", "no step was recorded"), ("eval", "nothing was evaluated")):
        path = run.records / f"{kind}.csv"
        run.curves[kind] = _read(run, path, read_curves, {}, without)
    rows: list[dict[str, str]] = _read(run, run.records / "generated.csv", csv_rows, [], "")
    run.answers = [row for row in rows if row["step"] == rows[-1]["step"]]
    run.warnings = _read(run, run.records / WARNINGS, _warnings, [], "")
    found = [(int(m[1]), p) for p in _inside(run.records) if (m := _SAMPLES.fullmatch(p.name))]
    for epoch, path in sorted(found):
        run.samples.append(_read(run, path, read_samples, Samples("", epoch=epoch), ""))


def _warnings(path: Path) -> list[tuple[int, str]]:
    rows, _ = json_rows(path.read_text(encoding="utf-8", errors="replace"))
    found = [(row["step"], str(row.get("warning", ""))) for row in rows]
    return list(dict.fromkeys(found))


def _read_checkpoints(run: Run) -> None:
    """The newest one that can be read."""
    named = [(int(m[2]), p) for p in _inside(run.checkpoints) if (m := _name(p))]
    for _, path in sorted(named, reverse=True):
        run.record = _read(run, path / FILE, _record, None, "")
        if run.record is not None:
            run.checkpoint = path.name
            run.progress = _read(run, path / STATE / PROGRESS, _mapping, {}, "no state of the run")
            return
    run.missing.append(
        f"{FILE}: {'no checkpoint has a readable one' if named else 'no checkpoint'}"
    )


def _name(path: Path) -> re.Match[str] | None:
    return _CHECKPOINT.fullmatch(path.name) if (path / FILE).exists() else None


def _record(path: Path) -> TrainingRecord | None:
    record = read_record(path.parent)
    if record is None:
        raise ValueError("damaged")
    record.setup, record.call = plain(record.setup), plain(record.call)
    return record


def _read_run_file(run: Run) -> None:
    content: dict[str, Any] = _read(
        run, run.checkpoints / NAME, _yaml, {}, "the arguments are those of training.json"
    )
    defaults = content.pop(DEFAULTS, None)
    content.pop(METHOD, None)
    run.given, run.defaults = content, defaults if isinstance(defaults, dict) else {}


def _yaml(path: Path) -> dict[str, Any]:
    return _as_mapping(yaml.safe_load(path.read_text(encoding="utf-8")))


def _mapping(path: Path) -> dict[str, Any]:
    return _as_mapping(json.loads(path.read_text(encoding="utf-8")))


def _as_mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError("it holds no names with values")
    made: dict[str, Any] = plain(content)
    return made


def _inside(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _read(run: Run, path: Path, read: Callable[[Path], T], empty: T, without: str) -> T:
    """What `read` makes of a file; `without`: what to say where there is none."""
    if not path.exists():
        if without:
            run.missing.append(f"{path.name}: not there ({without})")
        return empty
    try:
        return read(path)
    except (OSError, ValueError, csv.Error, yaml.YAMLError, RecursionError) as error:
        first = str(error).partition("\n")[0]
        run.missing.append(f"{path.parent.name}/{path.name}: cannot be read: {first}")
        return empty
