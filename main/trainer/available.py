"""What a run is asked for by name: schedules and trackers, tried or looked up at the call."""

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

from main.errors import MissingExtraError
from main.options import nearest


def scheduler_problems(name: str) -> list[str]:
    known = schedules()
    if name in known:
        return []
    return [f"lr_scheduler_type={name!r} must be one of {list(known)}.{nearest(name, known)}"]


@cache
def schedules() -> tuple[str, ...]:
    """Of transformers' schedules those that run with a warm-up and a number of steps alone."""
    from transformers.trainer_utils import SchedulerType

    return tuple(kind.value for kind in SchedulerType if _runs(kind.value))


def _runs(name: str) -> bool:
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        schedule = get_scheduler(name, optimizer, 1, 4)
        with warnings.catch_warnings():  # of the optimizer's step, which would call users' hooks
            warnings.simplefilter("ignore")
            schedule.step()
    except (TypeError, ValueError, AttributeError):
        return False
    return True


def tracker_problems(trackers: Sequence[Any]) -> list[str]:
    """One sentence for every name that is no tracker of accelerate's.

    Raises:
        MissingExtraError: one whose package is not installed.
    """
    if not trackers:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = {str(kind) for kind in LOGGER_TYPE_TO_CLASS}
    named = [name for name in trackers if isinstance(name, str) and name != "all"]
    found = [
        f"report_to={name!r} must be 'none', 'all' or one of {sorted(known)}.{nearest(name, known)}"
        for name in named
        if name not in known
    ]
    installed = {str(kind) for kind in get_available_trackers()}
    for name in named:
        if name in known - installed:
            raise MissingExtraError(name, None, f"report_to={name!r}")
    return found
