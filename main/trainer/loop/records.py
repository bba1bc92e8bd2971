"""What a run leaves to look at: CSV files, warnings, trackers such as TensorBoard, a bar."""

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from main.system.disk import told
from main.trainer.loop.home import WARNINGS, Home
from main.trainer.loop.row_files import CsvLog, JsonLog

SHOWN = 8  # lines of a table that trackers get


class Means:
    """Running means of named quantities, each the sum of its values over its own count.

    Values may be tensors: they are added where they are and read back only by `state`.
    """

    def __init__(self, state: Mapping[str, tuple[float, float]] | None = None):
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, float] = {}
        self.add(state or {})

    def add(self, metrics: Mapping[str, tuple[Any, float]]) -> None:
        """Add `name -> (sum, count)`."""
        for name, (total, count) in metrics.items():
            if isinstance(total, torch.Tensor):
                total = total.detach().double()
            self._sums[name] = self._sums.get(name, 0.0) + total
            self._counts[name] = self._counts.get(name, 0.0) + float(count)

    def state(self) -> dict[str, tuple[float, float]]:
        return {name: (float(total), self._counts[name]) for name, total in self._sums.items()}

    def means(self) -> dict[str, float]:
        return mean_of([self.state()])


def mean_of(states: list[dict[str, tuple[float, float]]]) -> dict[str, float]:
    """Means over several processes' states; NaN for what was never counted.

    The loss of steps in which nothing is trained is 0: that is what they were made with.
    """
    totals: dict[str, list[float]] = {}
    for state in states:
        for name, (value, count) in state.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += count
    return {
        name: value / count if count else 0.0 if name == "loss" else math.nan
        for name, (value, count) in totals.items()
    }


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of a table; what would break it in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("\r", "").replace("\n", "<br>")


class Records:
    """Writes on the main process only; on the others every method does nothing."""

    def __init__(
        self,
        accelerator: Any,
        home: Home,
        trackers: list[Any],
        settings: dict[str, Any],
        resumed_at: Mapping[str, int] | None,
    ):
        """resumed_at: of each record the last step that a resumed run keeps."""
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.csv: dict[str, CsvLog] = {}
        if self.main:
            for kind in ("train", "eval", "generated"):
                last = None if resumed_at is None else resumed_at[kind]
                self.csv[kind] = CsvLog(home.records / f"{kind}.csv", last)
            told_until = None if resumed_at is None else resumed_at["train"]
            self.warnings = JsonLog(home.records / WARNINGS, told_until)
        self.logs = home.logs
        if trackers:
            purge = {} if resumed_at is None else {"purge_step": resumed_at["train"] + 1}
            with told(self.logs / home.task_name):
                accelerator.init_trackers(home.task_name, init_kwargs={"tensorboard": purge})
                self._tell_settings(settings)

    def _tell_settings(self, settings: dict[str, Any]) -> None:
        """TensorBoard gets them as a text: its own way opens a second run directory for them."""
        for tracker in self.accelerator.trackers:
            if tracker.name != "tensorboard":
                tracker.store_init_configuration({n: _flat(v) for n, v in settings.items()})
            elif self.main:
                table = markdown_table(["argument", "value"], list(settings.items()))
                tracker.tracker.add_text("settings", table)

    def write(self, kind: str, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """One row of `<kind>.csv` and one point of every tracker; kind is 'train' or 'eval'."""
        if self.main:
            self.csv[kind].append({"step": step, "epoch": _short(epoch), **metrics})
        self._track({f"{kind}/{name}": v for name, v in metrics.items()}, step)

    def table(self, kind: str, lines: Sequence[Mapping[str, Any]], step: int, epoch: float) -> None:
        """The lines go to `<kind>.csv`; the first ones, as a table, to trackers that take text."""
        if not self.main:
            return
        for line in lines:
            self.csv[kind].append({"step": step, "epoch": _short(epoch), **line})
        shown = [list(line.values()) for line in lines[:SHOWN]]
        self._track({kind: markdown_table(list(lines[0]), shown)}, step)

    def warn(self, step: int, text: str) -> None:
        """One line of `warnings.jsonl`: a sign that the run goes wrong."""
        if self.main:
            self.warnings.append({"step": step, "warning": text})

    def text(self, name: str, text: str, step: int, epoch: int) -> None:
        """Markdown text, as `<name>_<epoch>.md` beside the CSV files and in trackers that can."""
        if self.main:
            path = self.csv["train"].path.with_name(f"{name}_{epoch}.md")
            with told(path):
                path.write_text(text, encoding="utf-8")
        self._track({name: text}, step)

    def _track(self, values: dict[str, Any], step: int) -> None:
        with told(self.logs / "events"):
            self.accelerator.log(values, step=step)

    def flush(self) -> None:
        """Wait until what was written is on the disk."""
        for file in (*self.csv.values(), self.warnings) if self.main else ():
            file.flush()

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def _short(epoch: float) -> float:
    return int(epoch) if epoch == int(epoch) else round(epoch, 4)


def _flat(value: Any) -> str | int | float:
    return value if isinstance(value, str | int | float) else str(value)


_SHOWN = {
    "loss": ("loss", "{:.4g}"),
    "tok/s": ("tokens_per_second", "{:.4g}"),
    "of limit": ("share_of_limit", "{:.0%}"),
}


class Progress:
    """A bar with loss, tokens/s and time left; silent when stderr is not a terminal."""

    def __init__(self, total: int, start: int, shown: bool | None):
        from tqdm import tqdm

        shown = sys.stderr.isatty() if shown is None else shown
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not shown, ncols=100)
        self.shown = shown

    def show(self, step: int, epoch: int, metrics: Means) -> None:
        if self.shown:
            means = metrics.means()
            shown = [
                f"{name} {form.format(means[key])}"
                for name, (key, form) in _SHOWN.items()
                if key in means
            ]
            self._bar.set_description(f"epoch {epoch}")
            self._bar.set_postfix_str("  ".join(shown))
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        self._bar.close()
