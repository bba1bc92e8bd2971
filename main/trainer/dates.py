"""The date that chat templates such as Llama 3's write into rows: one for the whole of a run."""

import datetime
from pathlib import Path
from typing import Any

from main.models.training_record import FILE, read_record
from main.system.processes import decide


def date_of(setup: Any) -> datetime.date:
    """`template_date`, or that of the task's newest checkpoint, or today.

    Of the checkpoint, so that a run which is resumed on another day is still the same run. All
    processes must call it.
    """
    if setup.template_date is not None:
        return datetime.date.fromisoformat(setup.template_date)
    return decide(lambda: _earlier(Path(setup.output_dir) / "save_model" / setup.task_name))


def _earlier(folder: Path) -> datetime.date:
    records = sorted(folder.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(records):
        record = read_record(path.parent)
        if record and record.template_date:
            return datetime.date.fromisoformat(record.template_date)
    return datetime.date.today()
