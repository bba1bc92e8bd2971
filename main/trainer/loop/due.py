"""What is due after a draw of rows: one rule for logging, saving and evaluating."""

import math
from typing import NamedTuple

from main.trainer.arguments import LoopOptions, Strategy


class Due(NamedTuple):
    log: bool
    save: bool
    evaluate: bool


def due(options: LoopOptions, before: int, step: int, epoch_ends: bool, run_ends: bool) -> Due:
    """What the draw that led from step `before` to `step` makes due.

    A multiple of `..._steps` that was passed, or the end of an epoch; the end of the run is due
    under either strategy, so that its last window, evaluation and weights are not lost.

    >>> options = LoopOptions(save_strategy="steps", save_steps=10)
    >>> due(options, before=9, step=12, epoch_ends=False, run_ends=False).save
    True
    """

    def is_due(strategy: Strategy, every: int) -> bool:
        if strategy == "steps":
            return step // every > before // every or run_ends
        return strategy == "epoch" and (epoch_ends or run_ends)

    return Due(
        log=is_due(options.logging_strategy, options.logging_steps),
        save=is_due(options.save_strategy, options.save_steps),
        evaluate=is_due(options.eval_strategy, options.eval_steps),
    )


class Length(NamedTuple):
    """How long a run is, in optimizer steps and in draws of an epoch."""

    total_steps: int
    draws: int

    @classmethod
    def of(cls, options: LoopOptions, draws: int, updates_per_draw: int) -> "Length":
        """`num_epochs` may be a fraction; with `max_steps` besides, what comes first ends it."""
        limits = []
        if options.epochs is not None:
            limits.append(math.ceil(round(options.epochs * draws, 6)) * updates_per_draw)
        if options.max_steps is not None:
            limits.append(options.max_steps)
        return cls(min(limits), draws)
