"""The date that chat templates such as Llama 3's write into rows: one for the whole of a run."""

import datetime
from contextlib import suppress
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
    found = {}
    for path in folder.glob(f"*/{FILE}"):
        record = read_record(path.parent)
        with suppress(OSError, ValueError, TypeError):  # gone meanwhile, or somebody's own file
            if record and record.template_date:
                date = datetime.date.fromisoformat(record.template_date)
                found[path.stat().st_mtime] = date
    return found[max(found)] if found else datetime.date.today()
