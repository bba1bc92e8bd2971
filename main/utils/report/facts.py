"""What is known of a run in single values: at a glance, settings, data."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from main.utils.report.run import Run
from main.utils.report.scale import number, percent

_OFTEN_ALIKE = ("task_name",)


def glance(run: Run) -> dict[str, str]:
    """A few values that say what the run was and what came out; unknown ones are left out."""
    found = {
        "method": run.record.method.partition(".")[0] if run.record else "",
        "base": Path(run.record.base).name if run.record else "",
        "steps": _steps(run),
        "loss": _change(run, "train", "loss"),
        "evaluation loss": _change(run, "eval", "loss"),
        "reward": _change(run, "train", "reward/mean"),
        "best": _best(run),
        "throughput": _mean(run, "tokens_per_second", "tokens/s"),
        "share of limit": _share(run),
        "peak memory": _peak(run),
        "newest record": _date(run),
    }
    return {name: value for name, value in found.items() if value}


def _steps(run: Run) -> str:
    steps = [points[0][-1] for points in run.curves.get("train", {}).values()]
    total = run.progress.get("total_steps")
    if not steps:
        return ""
    whole = f" of {total:,}" if isinstance(total, int) and total >= max(steps) else ""
    return f"{max(steps):,}{whole}"


def _change(run: Run, kind: str, name: str) -> str:
    _, values = run.points(kind, name)
    if not values:
        return ""
    return number(values[0]) if len(values) == 1 else f"{number(values[0])} → {number(values[-1])}"


def _best(run: Run) -> str:
    best, name = run.progress.get("best"), run.identity.get("metric_for_best_model")
    return f"{name} {number(best)}" if isinstance(best, int | float) and name else ""


def _mean(run: Run, name: str, unit: str) -> str:
    _, values = run.points("train", name)
    return f"{number(sum(values) / len(values))} {unit}" if values else ""


def _share(run: Run) -> str:
    _, values = run.points("train", "share_of_limit")
    return percent(sum(values) / len(values)) if values else ""


def _peak(run: Run) -> str:
    _, values = run.points("train", "peak_memory")
    return f"{number(max(values))} GiB" if values else ""


def _date(run: Run) -> str:
    path = run.records / "train.csv"
    if not path.is_file():
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Settings and facts that are not the same in all runs -> the value in each."""
    known = [_everything(run) for run in runs]
    names = dict.fromkeys(name for values in known for name in values)
    told = {name: [values.get(name, "not known") for values in known] for name in names}
    return {name: values for name, values in told.items() if len(set(values)) > 1}


def _everything(run: Run) -> dict[str, str]:
    settings = {n: shown(v) for n, v in run.settings.items() if n not in _OFTEN_ALIKE}
    return settings | training(run) | {f"data, {n}": v for n, v in data(run).items()}


def training(run: Run) -> dict[str, str]:
    """What training.json says beside arguments and data."""
    record = run.record
    if record is None:
        return {}
    found = {
        "library": record.library,
        "method": record.method,
        "base": record.base,
        "base digest": record.base_digest,
        "held against": record.reference,
        "template": "plain text, none" if record.plain_text else record.template_digest,
        "template variables": shown(record.template_kwargs) if record.template_kwargs else "",
        "template's date": record.template_date,
    }
    return {name: value for name, value in found.items() if value}


def data(run: Run) -> dict[str, str]:
    """Rows and digests, as far as they were recorded."""
    named = {"rows": "rows", "evaluated rows": "evaluated rows", "rows_per_step": "rows a step"}
    found = {words: shown(run.identity[key]) for key, words in named.items() if key in run.identity}
    if run.record:
        found |= {"row format": run.record.loader} if run.record.loader else {}
        found |= {f"digest of {n}": str(digest) for n, digest in run.record.data.items()}
    return found


def shown(value: Any) -> str:
    """A value of a setting as text."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
