"""Rewards of completions by functions of the user, in TRL's form.

A function takes `prompts`, `completions` and one list for each further column of the rows, all by
name and all with one entry a completion, and returns one number a completion, or None where it does
not apply. `trainer_state`, `log_metric` and `log_extra` are to be had too, see
main/trainer/reward_notes.py. A function without `**kwargs` is given only what it names; `async def`
functions run side by side. For a string prompt the completion is a string, for a conversation a
list of one message.

The reward of a completion is the weighted sum over the functions that apply to it. A completion to
which none applies is an error: nothing could be learnt from it.
"""

import asyncio
import functools
import inspect
import itertools
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from main.errors import ConfigError, MainError, RewardError
from main.trainer.reward_notes import Notes, TrainerState
from main.trainer.task import Metrics, Row

RewardFunction = Callable[..., Any]
# Names that no column may have.
OURS = ("prompts", "completions", "completion_ids", "trainer_state", "log_metric", "log_extra")


@dataclass
class Scoreable:
    """Completions to score, one entry each in every list.

    prompts: strings or lists of messages; completions likewise.
    completion_ids: their tokens, special ones among them.
    columns: the rows' other fields.
    rows: source row numbers, for messages.
    """

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: list[Mapping[str, Any]]
    rows: list[int]

    @classmethod
    def of_rows(
        cls,
        rows: Sequence[Row],
        completion_ids: Sequence[Sequence[int]],
        tokenizer: Any,
        columns: Sequence[Mapping[str, Any]] | None = None,
    ) -> "Scoreable":
        """A completion for each row of a data set, decoded; special tokens are left out.

        Args:
            columns: the fields that functions are given; None = those of the rows.
        """
        prompts = [json.loads(row["prompt"]) for row in rows]
        texts = completion_texts(tokenizer, completion_ids)
        return cls(
            prompts,
            [as_completion(prompt, text) for prompt, text in zip(prompts, texts, strict=True)],
            [list(ids) for ids in completion_ids],
            [json.loads(row["columns"]) for row in rows] if columns is None else list(columns),
            [row["row"] for row in rows],
        )

    @property
    def texts(self) -> list[str]:
        """The completions as plain text."""
        return [c if isinstance(c, str) else c[-1]["content"] for c in self.completions]

    def part(self, index: int) -> "Scoreable":
        """One completion alone."""
        part = slice(index, index + 1)
        return Scoreable(
            self.prompts[part],
            self.completions[part],
            self.completion_ids[part],
            self.columns[part],
            self.rows[part],
        )

    def arguments(self) -> dict[str, list[Any]]:
        """The data that functions are called with; a field that a row lacks is None there."""
        names = dict.fromkeys(name for columns in self.columns for name in columns)
        if taken := [name for name in names if name in OURS]:
            raise RewardError(
                f"row {self.rows[0]}: the fields {taken} have names that reward functions need for "
                "something else. Rename them in the data."
            )
        listed = {name: [columns.get(name) for columns in self.columns] for name in names}
        return {
            "prompts": self.prompts,
            "completions": self.completions,
            "completion_ids": self.completion_ids,
            **listed,
        }


@dataclass
class Scores:
    """Rewards of B completions by F functions.

    rewards: (B,) float32, the weighted sums.
    by_function: (B, F) float32, NaN where a function does not apply.
    notes: what the functions logged.
    """

    names: list[str]
    rewards: Tensor
    by_function: Tensor
    notes: Notes = field(default_factory=lambda: Notes(0))

    def metrics(self) -> Metrics:
        """Means for the records; a function counts where it applied."""
        applied = ~self.by_function.isnan()
        sums = self.by_function.nansum(0).tolist()
        found: Metrics = {
            f"rewards/{name}/mean": (sums[i], int(applied[:, i].sum()))
            for i, name in enumerate(self.names)
        }
        found["reward/mean"] = (float(self.rewards.sum()), len(self.rewards))
        return found | self.notes.metrics


class Rewards:
    """Calls the reward functions and checks what they return.

    Args:
        reward_func: one function, or a list of them.
        weights: one factor for each function; 1 by default.
        progress: where the run is when it is called.

    Raises:
        ConfigError: nothing to call, or another number of weights than of functions.
    """

    def __init__(
        self,
        reward_func: RewardFunction | Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        progress: Callable[[], TrainerState] = TrainerState,
    ):
        self.progress = progress
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
            RewardError: a function raised, or returned something else than one finite number or
                None a completion; it names the function and the source row.
        """
        if not what.rows:
            return Scores(self.names, torch.zeros(0), torch.zeros(0, len(self.functions)))
        notes = Notes(len(what.rows))
        returned = self._returned(what, notes)
        columns = [
            _checked(name, values, what.rows)
            for name, values in zip(self.names, returned, strict=True)
        ]
        table = torch.tensor(columns, dtype=torch.float32).T  # (B, F)
        self._refuse_unscored(table, what.rows)
        return Scores(self.names, (table * torch.tensor(self.weights)).nansum(1), table, notes)

    def _returned(self, what: Scoreable, notes: Notes) -> list[Any]:
        """What each function returned; those that are to be awaited run side by side."""
        results: list[Any] = []
        calls = [functools.partial(self._call, i) for i in range(len(self.functions))]
        for name, call in zip(self.names, calls, strict=True):
            with _Naming(name, call, what):
                results.append(call(what, notes))
        waiting = [i for i, result in enumerate(results) if inspect.isawaitable(result)]
        for i, result in zip(waiting, _await_all([results[i] for i in waiting]), strict=True):
            with _Naming(self.names[i], calls[i], what):
                if isinstance(result, BaseException):
                    raise result
            results[i] = result
        return results

    def _call(self, index: int, what: Scoreable, notes: Notes) -> Any:
        beside = {
            "trainer_state": self.progress(),
            "log_metric": notes.log_metric,
            "log_extra": notes.log_extra,
        }
        function = self.functions[index]
        return function(**_accepted(self.names[index], function, what, beside))

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


def completion_texts(tokenizer: Any, completion_ids: Sequence[Sequence[int]]) -> list[str]:
    """Text of completions without special tokens: what a reader of the answer would see."""
    return [tokenizer.decode(list(ids), skip_special_tokens=True) for ids in completion_ids]


def as_completion(prompt: str | list, text: str) -> str | list[dict[str, str]]:
    """The completion in the form of its prompt: a string, or a list of one message."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def _problems(functions: Sequence[Any], weights: Sequence[float]) -> list[str]:
    found = []
    if not functions:
        found.append("reward_func is empty: give a function or a list of functions.")
    found += [
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


def _accepted(
    name: str, function: RewardFunction, what: Scoreable, beside: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that `function` takes: all of them with `**kwargs`, else those it names."""
    data = what.arguments()
    arguments = {**data, **beside}
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions have no signature
        return arguments
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        wanted = set(arguments)
    else:
        wanted = {parameter.name for parameter in parameters}
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in arguments
    ]
    if missing:
        raise RewardError(
            f"reward function '{name}' needs {missing}, but row {what.rows[0]} has only "
            f"{sorted(data)}."
        )
    return {key: value for key, value in arguments.items() if key in wanted}


def _await_all(waiting: list[Awaitable[Any]]) -> list[Any]:
    """Results or errors, in order. A thread of its own: a notebook's event loop already runs."""
    if not waiting:
        return []

    async def together() -> list[Any]:
        return await asyncio.gather(*waiting, return_exceptions=True)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(together())).result()


class _Naming:
    """Turns an error of a reward function into one that names the function and the row."""

    def __init__(self, name: str, call: Callable[[Scoreable, Notes], Any], what: Scoreable):
        self.name, self.call, self.what = name, call, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, MainError):
            raise RewardError(
                f"reward function '{self.name}' raised {type(error).__name__}: {error} "
                f"({self._place()})."
            ) from error

    def _place(self) -> str:
        """The row that fails alone too; the run ends here, so that calling again costs little."""
        for index, row in enumerate(self.what.rows):
            alone = self.what.part(index)
            try:
                result = self.call(alone, Notes(1))
                if inspect.isawaitable(result):
                    (result,) = _await_all([result])
            except Exception:
                return f"row {row}"
            if isinstance(result, BaseException):
                return f"row {row}"
        return f"called with rows {sorted(set(self.what.rows))[:64]}"


def _checked(name: str, values: Any, rows: Sequence[int]) -> list[float]:
    """One number a completion, NaN for None.

    Raises:
        RewardError: another type, another number of entries, or a value that is no finite number.
    """
    if hasattr(values, "tolist"):  # arrays and tensors
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RewardError(
            f"reward function '{name}' returned {type(values).__name__} for row {rows[0]}, "
            "expected a list with one number or None a completion."
        )
    if len(values) != len(rows):
        raise RewardError(
            f"reward function '{name}' returned {len(values)} rewards for {len(rows)} completions "
            f"(rows {sorted(set(rows))[:64]}), expected one a completion."
        )
    return [_number(name, value, row) for value, row in zip(values, rows, strict=True)]


def _number(name: str, value: Any, row: int) -> float:
    if value is None:
        return math.nan
    if hasattr(value, "item"):  # numpy scalars and tensors of one element
        value = value.item()
    if not isinstance(value, Real) or not math.isfinite(value):
        raise RewardError(
            f"reward function '{name}' returned {value!r} for row {row}, expected a finite number, "
            "or None where the function does not apply."
        )
    return float(value)
