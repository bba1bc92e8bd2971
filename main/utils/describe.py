"""How an adapter or a merged model was trained, as its `training.json` says.

python -m main.utils.describe DIR
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from main.errors import MissingFileError
from main.models.training_record import FILE, TrainingRecord, read_record


def describe(folder: str | Path) -> str:
    """The record as text, one line a fact; what is empty is left out.

    Raises:
        MissingFileError: no such folder, or no readable record in it.
    """
    record = read_record(folder)
    if record is None:
        raise MissingFileError(
            f"'{folder}' has no readable {FILE}: it was not trained here, or by a version before "
            "that wrote it."
        )
    return "\n".join(line for f in fields(TrainingRecord) for line in _lines(record, f.name))


def _lines(record: TrainingRecord, name: str) -> list[str]:
    value: Any = getattr(record, name)
    if isinstance(value, dict):
        given = {k: v for k, v in value.items() if v not in (None, {}, [])}
        return [f"{name}:", *(f"  {k} = {v!r}" for k, v in given.items())] if given else []
    return [f"{name}: {value}"] if value != "" else []


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.describe", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="of an adapter, a checkpoint or a merged model")
    print(describe(parser.parse_args(arguments).folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
