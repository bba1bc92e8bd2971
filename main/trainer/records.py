"""What a run leaves to look at: CSV files, trackers such as TensorBoard, a progress bar."""

import csv
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


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
    """Means over several processes' states; what was never counted is left out."""
    totals: dict[str, list[float]] = {}
    for state in states:
        for name, (value, count) in state.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += value
            entry[1] += count
    return {name: value / count for name, (value, count) in totals.items() if count}


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Lines of a table; what would break it in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(value: Any) -> str:
    text = str(value).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("\r", "").replace("\n", "<br>")


class CsvLog:
    """A CSV file that grows by rows; a new column rewrites it once, with the old rows kept."""

    def __init__(self, path: Path, resume_step: int | None):
        """resume_step: keep rows up to this step; None starts a new file beside an older one."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = self._read()
        if resume_step is None and rows:
            path.rename(_unused(path))
            rows = []
        self._columns = list(rows[0]) if rows else []
        if resume_step is not None and rows:
            self._rewrite([row for row in rows if int(row["step"]) <= resume_step])

    def append(self, row: Mapping[str, Any]) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            old = self._read()
            self._columns += new
            self._rewrite([*old, row])
            return
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)

    def _read(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[Any]) -> None:
        temporary = self.path.with_suffix(".csv.tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        os.replace(temporary, self.path)


def _unused(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(path.stat().st_mtime))
    candidate = path.with_name(f"{path.stem}-{stamp}{path.suffix}")
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{stamp}-{number}{path.suffix}")
    return candidate


class Records:
    """Writes on the main process only; on the others every method does nothing."""

    def __init__(
        self,
        accelerator: Any,
        output_dir: Path,
        task_name: str,
        trackers: list[str],
        settings: dict[str, Any],
        resume_step: int | None,
    ):
        self.accelerator = accelerator
        self.main = accelerator.is_main_process
        self.csv: dict[str, CsvLog] = {}
        if self.main:
            folder = output_dir / "data_record" / task_name
            self.csv = {
                kind: CsvLog(folder / f"{kind}.csv", resume_step) for kind in ("train", "eval")
            }
        if trackers:
            purge = {} if resume_step is None else {"purge_step": resume_step + 1}
            accelerator.init_trackers(
                task_name, config=_plain(settings), init_kwargs={"tensorboard": purge}
            )

    def write(self, kind: str, step: int, epoch: float, metrics: dict[str, float]) -> None:
        """One row of `<kind>.csv` and one point of every tracker; kind is 'train' or 'eval'."""
        if self.main:
            self.csv[kind].append({"step": step, "epoch": round(epoch, 4), **metrics})
        self.accelerator.log({f"{kind}/{name}": v for name, v in metrics.items()}, step=step)

    def text(self, name: str, text: str, step: int, epoch: int) -> None:
        """Markdown text, as `<name>_<epoch>.md` beside the CSV files and in trackers that can."""
        if self.main:
            path = self.csv["train"].path.with_name(f"{name}_{epoch}.md")
            path.write_text(text, encoding="utf-8")
        self.accelerator.log({name: text}, step=step)

    def close(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()
        self.accelerator.trackers = []


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}


class Progress:
    """A bar with loss, tokens/s and time left; silent when stderr is not a terminal."""

    def __init__(self, total: int, start: int, shown: bool | None):
        from tqdm import tqdm

        shown = sys.stderr.isatty() if shown is None else shown
        self._bar = tqdm(total=total, initial=start, unit="step", disable=not shown, ncols=100)
        self.shown = shown

    def step(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.shown:
            self._bar.set_description(f"epoch {epoch}")
            self._bar.set_postfix_str(
                "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            )
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
