"""What the CSV files of a run's records say, as curves; damage costs rows, never the rest."""

import csv
import io
import math
import sys
from collections.abc import Sequence
from pathlib import Path

_INFINITE = 1e300  # no chart has room for more

Points = tuple[list[int], list[float]]


def record_folder(run: Path) -> Path:
    """`data_record/<task>` of `save_model/<task>`, or of a checkpoint in it.

    >>> record_folder(Path("out/save_model/demo")).as_posix()
    'out/data_record/demo'
    """
    parts = list(run.parts)
    if "save_model" not in parts:
        return run
    place = len(parts) - 1 - parts[::-1].index("save_model")
    return Path(*parts[:place], "data_record", *parts[place + 1 : place + 2])


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows that begin with a step; [] without a file. A cell that is missing is ''.

    Raises:
        OSError, csv.Error: the file cannot be read.
    """
    if not path.is_file():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace").replace("\0", "")
    limit = csv.field_size_limit(sys.maxsize)  # an answer may be long
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=""))
    finally:
        csv.field_size_limit(limit)
    kept = [row for row in rows if _is_step(row.get("step") or "")]
    return [{name: cell for name, cell in row.items() if name} for row in kept]


def read_curves(path: Path) -> dict[str, Points]:
    """Column -> steps and values; what is no finite number is left out, as are empty columns."""
    rows = csv_rows(path)
    found: dict[str, Points] = {}
    for name in rows[0] if rows else ():
        pairs = [(int(row["step"]), _number(row[name])) for row in rows]
        kept = sorted((step, value) for step, value in pairs if abs(value) < _INFINITE)
        if kept:
            found[name] = [step for step, _ in kept], [value for _, value in kept]
    return found


def read_points(path: Path, keys: Sequence[str]) -> Points:
    """Steps and values of the first of `keys` that the CSV file has.

    >>> read_points(Path("missing.csv"), ["loss"])
    ([], [])
    """
    curves = read_curves(path)
    return next((curves[key] for key in keys if key in curves), ([], []))


def _is_step(text: str) -> bool:
    return text.isdecimal() and len(text) <= 15


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
