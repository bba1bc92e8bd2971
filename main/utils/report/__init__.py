"""What a run left, as one HTML file to read, to send and to print.

    python -m main.utils.report save_model/quickstart                         # -> report.html
    python -m main.utils.report save_model/a save_model/b --output both.html  # side by side

It holds curves, settings, data, samples, scores with intervals and warnings, asks nothing of a
network and works without scripts.
"""

from collections.abc import Sequence
from pathlib import Path

from main.errors import ConfigError
from main.system.disk import appearing
from main.utils.report.page import page
from main.utils.report.run import read_run


def report(folders: str | Path | Sequence[str | Path], output: str | Path = "report.html") -> Path:
    """Write the report of one or several runs; returns the file.

    What is missing in a folder, or damaged, is named in the report; the rest is shown.

    Args:
        folders: `save_model/<task>` of each run (`data_record/<task>` or a checkpoint will do).
        output: the file to write, ending in .html.

    Raises:
        ConfigError: no run, one twice, or another ending.
        MissingFileError: a run of which there is no folder.
        DiskError: the file cannot be written.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    target = Path(output).expanduser()
    if not given or target.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"give at least one run and an output ending in .html; got {target}.")
    runs = [read_run(folder) for folder in given]
    places = [run.records.resolve() for run in runs]
    twice = [str(run.records) for run in runs if places.count(run.records.resolve()) > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice: name each run once.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with appearing(target) as path:
        path.write_text(page(runs), encoding="utf-8")
    return target
