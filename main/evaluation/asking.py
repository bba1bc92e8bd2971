"""Ask a batcher: rows that fail are told from a batcher, or an engine, that does not work."""

import copy
import itertools
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from typing import Any, NamedTuple

from main.errors import ConfigError, EngineDiedError, GenerationError
from main.evaluation.items import Item

logger = logging.getLogger("main.evaluation")

# {"query": [...], "history": [[...], ...]} -> one response for each query, in order. Rows with
# tools or variables of the chat template come together, and these are further entries.
Batcher = Callable[[dict[str, list[Any]]], list[str]]

PATIENCE = 3  # batches in a row of which no row works


class Outcome(NamedTuple):
    """What became of one row: a response, or the error."""

    item: Item
    response: str | None
    error: Exception | None = None


class Asker:
    """Asks batch after batch, and stops where the rows are not to blame.

    Batches of which no row works are held back. After PATIENCE of them in a row, and at the end, a
    row that worked before is asked once more: where it works, they are given out as failed; where
    it fails as well, or no row ever worked, the batcher is at fault.

    Args:
        worked: a row that was answered in an earlier run.

    Raises (`ask` and `rest`):
        GenerationError: no row can be answered; those held back are given to nobody.
        ConfigError: the batcher returned something else than one str for each query.
    """

    def __init__(self, batcher: Batcher, worked: Item | None = None):
        self.batcher, self.worked = batcher, worked
        self._held: list[list[Outcome]] = []

    def ask(self, batch: Sequence[Item]) -> list[Outcome]:
        """What is now certain, in the order of the rows."""
        outcomes = _outcomes(self.batcher, batch)
        self._held.append(outcomes)
        answered = [outcome.item for outcome in outcomes if outcome.error is None]
        if answered:
            self.worked = answered[-1]
            return self._given_out()
        return self.rest() if len(self._held) >= PATIENCE else []

    def rest(self) -> list[Outcome]:
        """What is still held back."""
        if self._held:
            self._check_batcher()
        return self._given_out()

    def _given_out(self) -> list[Outcome]:
        held, self._held = self._held, []
        return [outcome for outcomes in held for outcome in outcomes]

    def _check_batcher(self) -> None:
        first, error = self._held[0][0].item, self._held[0][0].error
        assert error is not None
        if self.worked is None:
            what = "no row could be answered"
        elif _outcomes(self.batcher, [self.worked])[0].error is None:
            return
        else:
            what = f"no row is answered any more, not even row {self.worked.idx} that was before"
        raise GenerationError(
            f"the run stopped: {what}. The first to fail was row {first.idx}: {error_text(error)}. "
            "The rows that failed are not in the file: mend the batcher and run the same call "
            "again, which asks them."
        ) from error


def error_text(error: Exception) -> str:
    """As the line of a failed row says it."""
    return f"{type(error).__name__}: {error}"


def batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    """At most `size` rows that are asked with the same further arguments, in order."""
    for _, alike in itertools.groupby(items, lambda item: json.dumps(dict(item.more))):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def _outcomes(batcher: Batcher, batch: Sequence[Item]) -> list[Outcome]:
    """In order; rows are asked one by one when the batch as a whole fails."""
    try:
        responses = batcher(_arguments(batch))
    except Exception as error:
        if _is_the_end(error):
            raise GenerationError(
                f"the run stopped at row {batch[0].idx}: {error_text(error)}. Rows that were "
                "answered before are in the file, this batch is not. Make a new predictor and run "
                "the same call again, which goes on here."
            ) from error
        if len(batch) > 1:
            return [_outcomes(batcher, [item])[0] for item in batch]
        return [Outcome(batch[0], None, error)]
    _check_responses(responses, len(batch))
    return [Outcome(i, response) for i, response in zip(batch, responses, strict=True)]


def _is_the_end(error: BaseException | None) -> bool:
    """Whether what computes is gone: an engine, a pool of processes, a device after a fault."""
    kinds: tuple[type[BaseException], ...] = (EngineDiedError, BrokenExecutor)
    if "torch" in sys.modules:
        kinds += (sys.modules["torch"].AcceleratorError,)
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, kinds) or "EngineDeadError" in names:  # of vLLM, when called directly
            return True
        error = error.__cause__
    return False


def _arguments(batch: Sequence[Item]) -> dict[str, list[Any]]:
    """Copies, so that a batcher may change what it gets."""
    copied = [[dict(message) for message in item.history] for item in batch]
    more = copy.deepcopy(dict(batch[0].more))
    return {"query": [item.query for item in batch], "history": copied, **more}


def _check_responses(responses: Any, expected: int) -> None:
    need = f"it must return a list with one str for each of the {expected} queries, in order"
    if not isinstance(responses, list | tuple):
        raise ConfigError(f"batcher returned a {type(responses).__name__}; {need}.")
    if len(responses) != expected:
        raise ConfigError(
            f"batcher returned {len(responses)} responses for {expected} queries; {need}."
        )
    wrong = [type(response).__name__ for response in responses if not isinstance(response, str)]
    if wrong:
        raise ConfigError(f"batcher returned a list with a {wrong[0]} in it; {need}.")
