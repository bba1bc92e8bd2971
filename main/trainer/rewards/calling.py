"""Calls functions on a batch: within a time limit, and again as a whole where one failed."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from main.errors import MainError, RewardError
from main.system.waiting import OutOfTime, await_all, within
from main.trainer.rewards.notes import Notes, TrainerState
from main.trainer.rewards.options import Patience
from main.trainer.rewards.scoreable import Scoreable

log = logging.getLogger(__name__)

RewardFunction = Callable[..., Any]


@dataclass
class Call:
    """A reward function by its name, and what came of calling it: a result, or an error."""

    name: str
    function: RewardFunction
    result: Any = None
    error: BaseException | None = None
    notes: Notes | None = None

    def begin(self, what: Scoreable, state: TrainerState, timeout: float | None) -> None:
        """Call it; of an `async def` the result is still to be awaited.

        Raises:
            RewardError: it needs a column that there is not.
        """
        # Of its own, so that an attempt given up cannot write into the next one's.
        self.error, self.notes = None, Notes(len(what.rows))
        beside = {
            "trainer_state": state,
            "log_metric": self.notes.log_metric,
            "log_extra": self.notes.log_extra,
        }
        arguments = _accepted(self.name, self.function, what, beside)
        try:
            self.result = within(functools.partial(self.function, **arguments), timeout)
        except MainError:
            raise
        except Exception as error:
            self.error = error

    @property
    def is_waiting(self) -> bool:
        return self.error is None and inspect.isawaitable(self.result)

    def end(self, result: Any) -> None:
        """Take what awaiting it gave."""
        if isinstance(result, MainError):
            raise result
        if isinstance(result, BaseException):
            self.error = result
        self.result = result


def call_all(
    functions: Mapping[str, RewardFunction],
    what: Scoreable,
    state: TrainerState,
    patience: Patience,
) -> tuple[list[Any], Notes]:
    """What each function returned, and what they noted; what is to be awaited runs side by side.

    A function that fails is called again; what the others returned stands.

    Raises:
        RewardError: a function failed each time; it names the function and the rows.
    """
    calls = [Call(name, function) for name, function in functions.items()]
    todo = calls
    for attempt in range(patience.retries + 1):
        _attempt(todo, what, state, patience.timeout)
        todo = [call for call in todo if call.error is not None]
        for call in todo if attempt < patience.retries else ():
            problem = _problem(call, what, patience.timeout)
            log.warning("%s. Calling it again (%d of %d).", problem, attempt + 1, patience.retries)
    for call in todo:
        times = f", {patience.retries + 1} times" if patience.retries else ""
        rows = sorted(set(what.rows))[:64]
        raise RewardError(
            f"{_problem(call, what, patience.timeout)} (called with rows {rows}{times})."
        ) from call.error
    notes = Notes(len(what.rows))
    for call in calls:
        assert call.notes is not None
        notes.take(call.notes)
    return [call.result for call in calls], notes


def _attempt(
    calls: Sequence[Call], what: Scoreable, state: TrainerState, timeout: float | None
) -> None:
    for call in calls:
        call.begin(what, state, timeout)
    waiting = [call for call in calls if call.is_waiting]
    results = await_all([call.result for call in waiting], timeout)
    for call, result in zip(waiting, results, strict=True):
        call.end(result)


def _problem(call: Call, what: Scoreable, timeout: float | None) -> str:
    if isinstance(call.error, OutOfTime):
        return (
            f"{what.judge} '{call.name}' was not done with {len(what.rows)} completions after "
            f"reward_timeout={timeout:g} seconds"
        )
    return f"{what.judge} '{call.name}' raised {type(call.error).__name__}: {call.error}"


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
            f"{what.judge} '{name}' needs {missing}, but row {what.rows[0]} has only "
            f"{sorted(data)}."
        )
    return {key: value for key, value in arguments.items() if key in wanted}
