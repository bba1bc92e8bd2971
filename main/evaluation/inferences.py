"""Answer every row of a data file with a predictor, into one JSON Lines file.

    def batcher(item):  # item = {"query": [...], "history": [[...], ...]}
        return predictor(**item, max_new_tokens=512, temperature=0)

    inference_with_data_path("dev.json", batcher, "outputs.jsonl", batch_size=16)

Each line has idx, query, history, response, the gold `answer` when the row has one, and `error`
(with response null) when the row failed. Under `accelerate launch` or torchrun the processes share
the rows. All rows of the input are held in memory; responses are not.
"""

import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from main.errors import ConfigError
from main.evaluation.claims import Claims
from main.evaluation.items import Item, items_of, read_items
from main.evaluation.outputs import Appender, Counts, Outputs, encode_line
from main.utils.processes import Place, decide, place, raise_together

logger = logging.getLogger("main.evaluation")

# {"query": [...], "history": [[...], ...]} -> one response for each query, in order.
Batcher = Callable[[dict[str, list[Any]]], list[str]]


class InferenceSummary(NamedTuple):
    """What a run leaves: rows in the file, how many of them failed, the file, seconds taken."""

    rows: int
    failed: int
    path: Path
    seconds: float


class Outcome(NamedTuple):
    """What became of one row: a response, or the error."""

    response: str | None
    error: str | None


class Plan(NamedTuple):
    """What the main process decides: rows already done, the folder for claims, the input's hash."""

    done: set[int]
    claims: Path | None
    input_hash: str


def inference_with_data_path(
    data_path: str | Path,
    batcher: Batcher,
    save_path: str | Path,
    batch_size: int = 4,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> InferenceSummary:
    """Answer the rows of a file; see inference_with_data for the arguments not named here.

    Args:
        data_path: a JSON array, or one JSON object a line, with rows of any format of the library:
            conversations (the last turn, if the assistant's, is the gold answer), conversations
            with gold_answers, prompt/answer, context/target, or query/history.

    Raises:
        MissingFileError: there is no such file.
        DataError, ConfigError: as inference_with_data.
    """
    if Path(data_path).resolve() == Path(save_path).resolve():
        raise ConfigError(f"save_path={str(save_path)!r} is data_path itself; name another file.")
    _check_arguments(batcher, batch_size)
    items = read_items(data_path)
    return _run(items, batcher, save_path, batch_size, overwrite, retry_failed, progress)


def inference_with_data(
    data: Iterable[Mapping[str, Any]],
    batcher: Batcher,
    save_path: str | Path,
    batch_size: int = 4,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    progress: bool | None = None,
) -> InferenceSummary:
    """Answer rows in memory, in their order, into `save_path`.

    A batch that fails is tried again row by row; a row that fails alone is noted with its error.
    A run that was interrupted, however hard, goes on where it stopped when it is called again.

    Args:
        data: rows as inference_with_data_path reads them.
        batcher: called with {"query": [...], "history": [[...], ...]} for up to `batch_size` rows;
            returns one str for each query, in order.
        save_path: the file to write; its missing folders are made.
        batch_size: rows in one call of `batcher`.
        overwrite: start anew, and lose the responses that are in `save_path`.
        retry_failed: answer those rows again that failed in an earlier run.
        progress: show a bar on standard error; None: when that is a terminal.

    Returns:
        Rows and failed rows in the file, its path, and the seconds of this call.

    Raises:
        DataError: rows that cannot be used (all of them listed), or a `save_path` that belongs to
            other rows.
        ConfigError: an argument that cannot work, or a batcher that returns something else than
            one str for each query.
    """
    _check_arguments(batcher, batch_size)
    items = items_of(data)
    return _run(items, batcher, save_path, batch_size, overwrite, retry_failed, progress)


def _run(
    items: list[Item],
    batcher: Batcher,
    save_path: str | Path,
    batch_size: int,
    overwrite: bool,
    retry_failed: bool,
    progress: bool | None,
) -> InferenceSummary:
    started = time.monotonic()
    here = place()
    outputs = Outputs(save_path, items)
    try:
        plan = decide(lambda: _plan(outputs, here, overwrite, retry_failed))
        raise_together(_same_input(plan, outputs))
        todo = [item for item in items if item.idx not in plan.done]
        path = outputs.save_path if here.size == 1 else outputs.part(here.rank)
        claims = Claims(plan.claims)
        with _bar(len(items), len(plan.done), progress, here) as bar:
            error = _work(_batches(todo, batch_size), batcher, path, claims, bar)
        raise_together(error)
        counts: Counts = decide(outputs.finish)
    except KeyboardInterrupt:
        logger.warning("Interrupted. Run the same call again: it continues %s.", save_path)
        raise
    finally:
        outputs.release()
    summary = InferenceSummary(*counts, outputs.save_path, time.monotonic() - started)
    if here.is_main:
        print(
            f"{summary.path}: {summary.rows} rows, {summary.failed} failed, "
            f"{len(todo)} answered now in {summary.seconds:.1f} s"
        )
    return summary


def _plan(outputs: Outputs, here: Place, overwrite: bool, retry_failed: bool) -> Plan:
    done = outputs.prepare(overwrite, retry_failed)
    if here.size == 1:
        return Plan(done, None, outputs.input_hash)
    claims = outputs.folder / f"claims-{secrets.token_hex(4)}"
    claims.mkdir()
    return Plan(done, claims, outputs.input_hash)


def _same_input(plan: Plan, outputs: Outputs) -> ConfigError | None:
    if plan.input_hash == outputs.input_hash:
        return None
    return ConfigError(
        "The processes were given different rows. Give all rows to every process: they share the "
        "work among themselves."
    )


def _work(
    batches: Iterable[list[Item]], batcher: Batcher, path: Path, claims: Claims, bar: tqdm
) -> Exception | None:
    """Answer the batches that this process gets; the error that ended it, if one did."""
    appender = Appender(path)
    first, warned = bar.n, False
    try:
        for number, batch in enumerate(batches):
            if not claims.take(number):
                continue
            outcomes = _answer(batcher, batch)
            appender.append([encode_line(i, *o) for i, o in zip(batch, outcomes, strict=True)])
            warned = warned or _warn_of_failure(batch, outcomes)
            _advance(bar, len(batch), first, claims)
    except Exception as error:
        claims.stop()
        return error
    finally:
        appender.close()
    return None


def _warn_of_failure(batch: list[Item], outcomes: list[Outcome]) -> bool:
    for item, outcome in zip(batch, outcomes, strict=True):
        if outcome.error is not None:
            logger.warning(
                "Row %d failed: %s. Its line says so; further failures are only counted.",
                item.idx,
                outcome.error,
            )
            return True
    return False


def _answer(batcher: Batcher, batch: list[Item]) -> list[Outcome]:
    """Outcomes in order; rows one by one when the batch as a whole fails."""
    try:
        responses = batcher(_arguments(batch))
    except Exception as error:
        if len(batch) > 1:
            return [_answer(batcher, [item])[0] for item in batch]
        return [Outcome(None, f"{type(error).__name__}: {error}")]
    _check_responses(responses, len(batch))
    return [Outcome(response, None) for response in responses]


def _arguments(batch: Sequence[Item]) -> dict[str, list[Any]]:
    """Copies, so that a batcher may change what it gets."""
    copied = [[dict(message) for message in item.history] for item in batch]
    return {"query": [item.query for item in batch], "history": copied}


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


def _check_arguments(batcher: Any, batch_size: Any) -> None:
    if not callable(batcher):
        raise ConfigError(f"batcher={batcher!r} must be a function of one dict.")
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r} must be an integer of at least 1.")


def _batches(items: Sequence[Item], size: int) -> Iterator[list[Item]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _bar(total: int, done: int, progress: bool | None, here: Place) -> tqdm:
    wanted = sys.stderr.isatty() if progress is None else progress
    return tqdm(
        total=total, initial=done, unit="rows", disable=not (wanted and here.is_main), leave=False
    )


def _advance(bar: tqdm, rows: int, first: int, claims: Claims) -> None:
    """By the rows just answered; among several processes, to the rows handed out to any."""
    if bar.disable or claims.folder is None:
        bar.update(rows)
    else:
        bar.update(max(min(first + rows * claims.taken(), bar.total) - bar.n, 0))
