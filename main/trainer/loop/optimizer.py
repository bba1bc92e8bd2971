"""AdamW and the learning rate's schedule."""

import math
from collections.abc import Callable
from typing import Any

import torch

from main.trainer.arguments import LoopOptions


def make_optimizer(
    model: torch.nn.Module, options: LoopOptions, rate: Callable[[str], float] = lambda name: 1.0
) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, never on biases, norms or magnitudes.

    Args:
        rate: by which factor the parameter of a name learns faster than `lr`.
    """
    groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rate(name), parameter.ndim >= 2), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": groups[factor, matrix],
                "lr": factor * options.lr,
                "weight_decay": options.weight_decay if matrix else 0.0,
            }
            # matrices first
            for factor, matrix in sorted(groups, key=lambda group: not group[1])
        ],
        lr=options.lr,
        betas=tuple(options.adam_betas),
        eps=options.adam_epsilon,
    )


def make_schedule(optimizer: torch.optim.Optimizer, options: LoopOptions, total: int) -> Any:
    """The rate by optimizer steps: up during the warm-up, then as `lr_scheduler_type` says."""
    from transformers import get_scheduler

    return get_scheduler(options.lr_scheduler_type, optimizer, warmup_steps(options, total), total)


def resume_schedule(schedule: Any, state: dict[str, Any]) -> None:
    """Go on at the step of `state`, with the rates of this schedule: another one may have been."""
    schedule.load_state_dict(state | {"base_lrs": schedule.base_lrs})
    rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    schedule._last_lr = [base * factor(schedule.last_epoch) for base, factor in rates]
    for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
        group["lr"] = rate


def warmup_steps(options: LoopOptions, total: int) -> int:
    given = options.warmup_steps
    return math.ceil(total * options.warmup_ratio) if given is None else min(given, total)
