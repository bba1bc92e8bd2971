"""Answer every row of a data file with a predictor, into one JSON Lines file.

    def batcher(item):  # item = {"query": [...], "history": [[...], ...]}
        return predictor(**item, max_new_tokens=512, temperature=0)

    inference_with_data_path("dev.json", batcher, "outputs.jsonl", batch_size=16)

Each line has idx, query, history, response, the gold `answer` when the row has one, `error` (with
response null) when the row failed, and the row's other columns. Under `accelerate launch` or
torchrun the processes share the rows. All rows of the input are held in memory; responses are not.
"""

import logging
import secrets
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from main.errors import ConfigError
from main.evaluation.answered_by import Record, Watch
from main.evaluation.asking import Asker, Batcher, batches
from main.evaluation.book import Book
from main.evaluation.claims import Claims
from main.evaluation.items import Item, items_of, read_items
from main.evaluation.outputs import Counts, Outputs
from main.predictor.answerer import hearing
from main.system.disk import told
from main.system.processes import Member, decide, raise_together, this_process

logger = logging.getLogger("main.evaluation")


class InferenceSummary(NamedTuple):
    """What a run leaves: rows in the file, how many of them failed, the file, seconds taken."""

    rows: int
    failed: int
    path: Path
    seconds: float


class How(NamedTuple):
    """How a run treats what is there and what comes; see inference_with_data."""

    batch_size: int
    overwrite: bool
    retry_failed: bool
    split_thoughts: bool
    progress: bool | None


class Plan(NamedTuple):
    """What the main process decides.

    done: rows that are answered already; worked: one of them that did not fail, if there is one.
    record: who answered them.
    claims: the folder for claims.
    """

    done: set[int]
    worked: int | None
    record: Record
    claims: Path | None
    input_hash: str


def inference_with_data_path(
    data_path: Any,
    batcher: Batcher,
    save_path: str | Path,
    batch_size: int = 4,
    *,
    split: str | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    split_thoughts: bool = False,
    progress: bool | None = None,
) -> InferenceSummary:
    """Answer the rows of a file; see inference_with_data for the arguments not named here.

    Args:
        data_path: a file, a list of files, or what else `main.loaders.resolve` takes, with rows of
            any format of the library: conversations (the last turn, if the assistant's, is the gold
            answer), conversations with gold_answers, prompt/answer, context/target, query/history;
            or of a shape that `loader_name="auto"` knows, as Alpaca's.
        split: which one is asked, of a registered data set, a folder or a `DatasetDict`.

    Raises:
        MissingFileError: there is no such file.
        DataError, ConfigError: as inference_with_data.
    """
    _check_apart(data_path, save_path)
    how = How(batch_size, overwrite, retry_failed, split_thoughts, progress)
    _check_arguments(batcher, how)
    return _run(read_items(data_path, split), batcher, save_path, how)


def inference_with_data(
    data: Iterable[Mapping[str, Any]],
    batcher: Batcher,
    save_path: str | Path,
    batch_size: int = 4,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    split_thoughts: bool = False,
    progress: bool | None = None,
) -> InferenceSummary:
    """Answer rows in memory, in their order, into `save_path`.

    A batch that fails is tried again row by row; a row that fails alone is noted with its error.
    A run that was interrupted, however hard, goes on where it stopped when it is called again. Who
    answered is noted by the predictors themselves, kept in `<save_path>.answered_by.json`, and
    another model does not go on with the file.

    Args:
        data: rows as inference_with_data_path reads them.
        batcher: called with {"query": [...], "history": [[...], ...]} for up to `batch_size` rows;
            returns one str for each query, in order. Rows that have tools or variables of the chat
            template are asked together where these are the same, and they are further entries:
            "tools", "enable_thinking".
        save_path: the file to write; its missing folders are made.
        batch_size: rows in one call of `batcher`.
        overwrite: start anew, and lose the responses that are in `save_path`.
        retry_failed: answer those rows again that failed in an earlier run.
        split_thoughts: write what a response thinks in <think>...</think> into a field `thoughts`.
        progress: show a bar on standard error; None: when that is a terminal.

    Returns:
        Rows and failed rows in the file, its path, and the seconds of this call.

    Raises:
        DataError: rows that cannot be used (all of them listed), or a `save_path` that belongs to
            other rows.
        ConfigError: an argument that cannot work, a batcher that returns something else than one
            str for each query, or a file that another model answered.
        GenerationError: an engine that died, or the first three batches without an answered row;
            these rows are not in the file.
        DiskError: the file cannot be written.
    """
    how = How(batch_size, overwrite, retry_failed, split_thoughts, progress)
    _check_arguments(batcher, how)
    return _run(items_of(data), batcher, save_path, how)


def _run(items: list[Item], batcher: Batcher, save_path: str | Path, how: How) -> InferenceSummary:
    started = time.monotonic()
    here = this_process()
    outputs = Outputs(save_path, items, how.split_thoughts)
    try:
        plan = decide(lambda: _plan(outputs, here, how))
        raise_together(_same_input(plan, outputs))
        todo = [item for item in items if item.idx not in plan.done]
        raise_together(_work(todo, batcher, outputs, plan, how))
        counts: Counts = decide(lambda: _finish(outputs))
    except KeyboardInterrupt:
        logger.warning("Interrupted. Run the same call again: it continues %s.", save_path)
        raise
    finally:
        with told(outputs.save_path):
            outputs.release()
    summary = InferenceSummary(*counts, outputs.save_path, time.monotonic() - started)
    if here.is_main:
        print(
            f"{summary.path}: {summary.rows} rows, {summary.failed} failed, "
            f"{len(todo)} answered now in {summary.seconds:.1f} s"
        )
    return summary


def _plan(outputs: Outputs, here: Member, how: How) -> Plan:
    with told(outputs.save_path):
        done, failed, record = outputs.prepare(how.overwrite, how.retry_failed)
        claims = None
        if here.size > 1:
            claims = outputs.folder / f"claims-{secrets.token_hex(4)}"
            claims.mkdir()
    if len(done) == len(outputs.items):
        again = "; retry_failed=True asks those again that failed" if failed else ""
        logger.warning(
            "%s: all %d rows were already answered, by %s%s. overwrite=True answers all anew.",
            outputs.save_path, len(done), record, again,
        )  # fmt: skip
    worked = min(done - failed, default=None)
    return Plan(done, worked, record, claims, outputs.input_hash)


def _finish(outputs: Outputs) -> Counts:
    with told(outputs.save_path):
        return outputs.finish()


def _same_input(plan: Plan, outputs: Outputs) -> ConfigError | None:
    if plan.input_hash == outputs.input_hash:
        return None
    return ConfigError(
        "The processes were given different rows. Give all rows to every process: they share the "
        "work among themselves."
    )


def _work(
    todo: list[Item], batcher: Batcher, outputs: Outputs, plan: Plan, how: How
) -> Exception | None:
    """Answer the batches that this process gets; the error that ended it, if one did."""
    here, claims = this_process(), Claims(plan.claims)
    path = outputs.save_path if here.size == 1 else outputs.part(here.rank)
    asker = Asker(batcher, None if plan.worked is None else outputs.items[plan.worked])
    watch = Watch(outputs.save_path, plan.record, len(plan.done), path)
    try:
        with (
            told(path),
            Book(path, how.split_thoughts) as book,
            _bar(len(outputs.items), len(plan.done), how.progress, here) as bar,
            hearing() as calls,
        ):
            for number, batch in enumerate(batches(todo, how.batch_size)):
                if claims.take(number):
                    outcomes = asker.ask(batch)
                    watch.hear(calls)
                    book.enter(outcomes)
                    _advance(bar, len(batch), len(plan.done), claims)
            book.enter(asker.rest())
    except Exception as error:
        claims.stop()
        return error
    return None


def _check_apart(data: Any, save_path: str | Path) -> None:
    paths = data if isinstance(data, list | tuple) else [data]
    target = Path(save_path).expanduser().resolve()
    for path in paths:
        if isinstance(path, str | Path) and Path(path).expanduser().resolve() == target:
            raise ConfigError(
                f"save_path={str(save_path)!r} is data_path itself; name another file."
            )


def _check_arguments(batcher: Any, how: How) -> None:
    if not callable(batcher):
        raise ConfigError(f"batcher={batcher!r} must be a function of one dict.")
    size = how.batch_size
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ConfigError(f"batch_size={size!r} must be an integer of at least 1.")


def _bar(total: int, done: int, progress: bool | None, here: Member) -> tqdm:
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
