"""The best evaluation of a run, the best checkpoint, and when to stop for want of a better one."""

from fnmatch import fnmatchcase
from pathlib import Path

from main.errors import ConfigError
from main.options import nearest
from main.trainer.arguments import LoopOptions
from main.trainer.loop.state import RunState
from main.trainer.loop.task import Task


def check_metric(task: Task, options: LoopOptions) -> None:
    """Raises ConfigError: no evaluation of the task will have the metric that is asked for."""
    names = task.evaluated_names()
    if names is None or task.eval_data is None or options.eval_strategy == "no":
        return
    names = [*names, *task.answered_names()]
    if not any(fnmatchcase(options.best_metric, name) for name in names):
        raise ConfigError(
            f"metric_for_best_model={options.best_metric!r} is not evaluated; there are "
            f"{sorted(names)}.{nearest(options.best_metric, names)}"
        )


def compare(state: RunState, options: LoopOptions, saved: Path | None) -> None:
    """Look at the latest evaluation.

    Args:
        saved: the checkpoint that holds the evaluated weights; only such a one is called best.

    Raises:
        ConfigError: the metric is not among those evaluated.
    """
    name = options.best_metric
    if name not in state.evaluation:
        raise ConfigError(
            f"metric_for_best_model={name!r} is not evaluated; there are "
            f"{sorted(state.evaluation)}."
        )
    value = state.evaluation[name]
    improved = _better(value, state.best, options)
    state.stale = 0 if improved else state.stale + 1
    if improved:
        state.best = value
    if saved is not None and _better(value, state.best_saved, options):
        state.best_saved, state.best_checkpoint = value, saved.name


def patience_is_over(state: RunState, options: LoopOptions) -> bool:
    patience = options.early_stopping_patience
    return patience is not None and state.stale >= patience


def _better(value: float, than: float | None, options: LoopOptions) -> bool:
    sign = 1 if options.best_is_greatest else -1
    return than is None or sign * value > sign * than
