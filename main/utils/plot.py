"""Curves of one or several runs as one PNG: loss, reward, divergence, length, learning rate.

python -m main.utils.plot save_model/quickstart                        # -> quickstart.png
python -m main.utils.plot save_model/a save_model/b --output both.png  # side by side
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from main.errors import ConfigError, DataError, MissingExtraError, MissingFileError
from main.utils.curves import read_points, record_folder

# Panels in their order: title, and the columns that belong to it, the first that a run has.
PANELS = (
    ("loss", ("loss",)),
    ("accuracy", ("accuracy",)),
    ("margin of rewards", ("rewards/margin",)),
    ("reward", ("reward/mean",)),
    ("KL to the reference, nats", ("kl",)),
    ("completion length, tokens", ("completion_length",)),
    ("entropy, nats", ("entropy",)),
    ("gradient norm", ("grad_norm",)),
    ("learning rate", ("lr",)),
)
COLUMNS = 3


def plot(runs: Sequence[str | Path], output: str | Path) -> Path:
    """Draw the records of runs into one PNG; each run has a colour, evaluation is dashed.

    Args:
        runs: `save_model/<task>` or `data_record/<task>` folders.
        output: the PNG to write.

    Raises:
        ConfigError: no run, or an output that is no .png.
        MissingFileError: a run without records.
        DataError: records without any curve.
        MissingExtraError: matplotlib is not installed.
    """
    output = Path(output).expanduser()
    if not runs or output.suffix != ".png":
        raise ConfigError(f"give at least one run and an output ending in .png; got {output}.")
    records = {str(run): _records(Path(run).expanduser()) for run in runs}
    panels = [(title, keys) for title, keys in PANELS if any(_has(r, keys) for r in _all(records))]
    if not panels:
        raise DataError(f"no curve in the records of {list(records)}: nothing was logged yet.")
    figure, axes = _figure(len(panels))
    for axis, (title, keys) in zip(axes, panels, strict=False):
        _draw(axis, title, keys, records)
    for axis in axes[len(panels) :]:
        axis.remove()
    axes[0].legend(fontsize="small")
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    return output


def _records(run: Path) -> dict[str, Path]:
    """The CSV files of a run, found from either of its folders."""
    folder = record_folder(run)
    files = {kind: folder / f"{kind}.csv" for kind in ("train", "eval")}
    if not any(path.is_file() for path in files.values()):
        raise MissingFileError(
            f"'{run}' has no records (looked for {files['train']}). Name save_model/<task_name> of "
            "a run that has logged at least once."
        )
    return files


def _all(records: dict[str, dict[str, Path]]) -> list[Path]:
    return [path for files in records.values() for path in files.values()]


def _has(path: Path, keys: Sequence[str]) -> bool:
    return bool(read_points(path, keys)[0])


def _figure(panels: int) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot", "main.utils.plot") from error
    rows = -(-panels // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 2.9 * rows), layout="constrained")
    return figure, list(figure.subplots(rows, COLUMNS, squeeze=False).flat)


def _draw(axis: Any, title: str, keys: Sequence[str], records: dict[str, dict[str, Path]]) -> None:
    axis.set_title(title, fontsize="medium")
    axis.set_xlabel("optimizer steps", fontsize="small")
    axis.grid(alpha=0.3)
    for number, (run, files) in enumerate(records.items()):
        for kind, style in (("train", "-"), ("eval", "o--")):
            steps, values = read_points(files[kind], keys)
            label = f"{Path(run).name}, {kind}"
            if steps:
                axis.plot(steps, values, style, color=f"C{number}", label=label, markersize=4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="save_model/<task_name> folders")
    parser.add_argument("--output", help="the PNG; by default <task_name>.png here")
    arguments = parser.parse_args()
    print(plot(arguments.runs, arguments.output or f"{Path(arguments.runs[0]).name}.png"))


if __name__ == "__main__":
    main()
