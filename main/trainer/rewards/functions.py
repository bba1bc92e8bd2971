"""Rewards of completions by functions of the user, in TRL's form.

A function takes `prompts`, `completions` and one list for each further column of the rows, all by
name and all with one entry a completion, and returns one number a completion, or None where it does
not apply. `trainer_state`, `log_metric` and `log_extra` are to be had too, see
main/trainer/rewards/notes.py. A function without `**kwargs` is given only what it names;
`async def` functions run side by side. For a string prompt the completion is a string, for a
conversation a list of one message.

The reward of a completion is the weighted sum over the functions that apply to it. A completion to
which none applies is an error: nothing could be learnt from it.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from main.errors import ConfigError, RewardError
from main.trainer.rewards.calling import Patience, RewardFunction, call_all
from main.trainer.rewards.notes import Notes, TrainerState
from main.trainer.rewards.scoreable import Scoreable

LARGEST = torch.finfo(torch.float32).max / 1e6  # room for sums in the models' own arithmetic


@dataclass
class Scores:
    """Rewards of B completions by F functions.

    rewards: (B,) float64, the weighted sums.
    by_function: (B, F) float64, NaN where a function does not apply.
    notes: what the functions logged.
    """

    names: list[str]
    rewards: Tensor
    by_function: Tensor
    notes: Notes = field(default_factory=lambda: Notes(0))


class Rewards:
    """Calls the reward functions and checks what they return.

    Args:
        reward_func: one function, or a list of them; of an empty one every reward is 0.
        weights: one factor for each function; 1 by default.
        progress: where the run is when it is called.
        patience: with a function that fails.

    Raises:
        ConfigError: what is no function, or another number of weights than of functions.
    """

    def __init__(
        self,
        reward_func: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        progress: Callable[[], TrainerState] = TrainerState,
        patience: Patience | None = None,
    ):
        self.progress, self.patience = progress, patience or Patience()
        self.functions: list[RewardFunction] = (
            [reward_func] if callable(reward_func) else list(reward_func)
        )
        self.weights = [1.0] * len(self.functions) if weights is None else list(weights)
        if problems := _problems(self.functions, self.weights):
            raise ConfigError(" ".join(problems))
        self.names = unique_names(self.functions)

    def score(self, what: Scoreable) -> Scores:
        """Rewards of the completions.

        Raises:
            RewardError: a function raised or took too long, as often as it was called, or returned
                something else than one finite number or None a completion; it names the function
                and the source rows.
        """
        if not what.rows or not self.functions:  # a teacher alone judges
            count = len(what.rows)
            none = torch.zeros(count, len(self.functions))
            return Scores(self.names, torch.zeros(count), none, Notes(count))
        named = dict(zip(self.names, self.functions, strict=True))
        returned, notes = call_all(named, what, self.progress(), self.patience)
        columns = [
            numbers(f"{what.judge} '{name}'", values, what.rows)
            for name, values in zip(self.names, returned, strict=True)
        ]
        table = torch.tensor(columns, dtype=torch.float64).T  # (B, F)
        self._refuse_unscored(table, what.rows)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return Scores(self.names, (table * weights).nansum(1), table, notes)

    def _refuse_unscored(self, table: Tensor, rows: Sequence[int]) -> None:
        unscored = table.isnan().all(1)
        if unscored.any():
            row = rows[int(unscored.nonzero()[0])]
            raise RewardError(
                f"row {row}: every reward function ({', '.join(self.names)}) returned None. "
                "Add one that applies to this row, or take the row out of the data."
            )


def unique_names(functions: Sequence[RewardFunction]) -> list[str]:
    """Names for the records; a second function of the same name is `name_2`.

    >>> unique_names([abs, abs, functools.partial(abs)])
    ['abs', 'abs_2', 'abs_3']
    """
    names: list[str] = []
    for function in functions:
        while isinstance(function, functools.partial):
            function = function.func
        base = getattr(function, "__name__", type(function).__name__)
        free = (base if i == 1 else f"{base}_{i}" for i in itertools.count(1))
        names.append(next(name for name in free if name not in names))
    return names


def _problems(functions: Sequence[Any], weights: Sequence[float]) -> list[str]:
    found = [
        f"reward_func holds {function!r}, which is not a function."
        for function in functions
        if not callable(function)
    ]
    if len(weights) != len(functions):
        found.append(
            f"reward_weights has {len(weights)} entries for {len(functions)} reward functions: "
            "give one for each."
        )
    if not all(isinstance(weight, Real) and math.isfinite(weight) for weight in weights):
        found.append(f"reward_weights={list(weights)} must be finite numbers.")
    return found


def numbers(who: str, values: Any, rows: Sequence[int]) -> list[float]:
    """What `who` returned for completions of these rows: one number each, NaN for None.

    Raises:
        RewardError: another type, another number of entries, or a value that is no finite number.
    """
    if hasattr(values, "tolist"):  # arrays and tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"{who} returned {type(values).__name__} for row {rows[0]}, "
            "expected a list with one number or None a completion."
        )
    if len(values) != len(rows):
        raise RewardError(
            f"{who} returned {len(values)} rewards for {len(rows)} completions "
            f"(rows {sorted(set(rows))[:64]}), expected one a completion."
        )
    return [_number(who, value, row) for value, row in zip(values, rows, strict=True)]


def _number(who: str, value: Any, row: int) -> float:
    if value is None:
        return math.nan
    if hasattr(value, "item"):  # numpy scalars and tensors of one element
        value = value.item()
    if not isinstance(value, Real) or not abs(float(value)) <= LARGEST:
        raise RewardError(
            f"{who} returned {value!r} for row {row}, expected a finite number "
            f"of at most {LARGEST:.3g}, or None where the function does not apply."
        )
    return float(value)
