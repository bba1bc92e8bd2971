"""Log-probabilities of the reference: computed once for all rows, kept beside the encoded rows.

The processes of a run share the work. What is kept is taken again when the same rows meet the same
reference, after a few rows were computed anew and agreed.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from main.errors import TrainingError
from main.system.disk import appearing, disk_error
from main.system.folders import cache_folder
from main.system.locks import beside, in_turn
from main.system.processes import (
    decide,
    gather_objects,
    gather_shares,
    join,
    this_copy,
    this_process,
    together,
)
from main.trainer.loop.task import Row, Rows

log = logging.getLogger(__name__)

# Rows -> (rows, answers) sums of log-probabilities
Score = Callable[[Sequence[Row]], Tensor]
_CHECKED = 3  # rows computed anew


def reference_logprobs(
    rows: Rows, key: str, score: Score, batch_size: int, tolerance: float
) -> Tensor:
    """(N, A) float32, one sum for each answer of each row.

    Args:
        key: stands for everything that changes the result.
        score: the reference, ready to compute.
        batch_size: rows at once in one process.
        tolerance: by which a row computed again may differ, relative to max(1, |sum|).

    Raises:
        TrainingError: kept values that are not the reference's.
        DiskError: they cannot be kept.
    """
    path = together(lambda: cache_folder() / f"reference_{key}.safetensors")
    found = _found(path, len(rows))
    if found is None:
        with _in_turn(path):
            found = _found(path, len(rows))  # another run may have made it meanwhile
            if found is None:
                log.info("computing the reference's log-probabilities of %d rows", len(rows))
                values = _compute(rows, score, batch_size)
                together(lambda: _write(path, values))
                return values
    _verify(found, rows, score, path, tolerance)
    log.info("reference log-probabilities of %d rows from %s", len(rows), path)
    return found


def _found(path: Path, count: int) -> Tensor | None:
    """What is kept, if every process finds it."""
    found = _read(path, count)
    return found if all(gather_objects(found is not None)) else None


@contextmanager
def _in_turn(path: Path) -> Iterator[None]:
    """The main process waits, for all, until no other run computes the same."""
    with ExitStack() as stack:
        decide(lambda: stack.enter_context(in_turn(beside(path), f"the making of {path.name}")))
        yield


def _compute(rows: Rows, score: Score, batch_size: int) -> Tensor:
    """Rows of similar length together; every process computes its share."""
    rank, world = this_copy()
    order = sorted(range(len(rows)), key=lambda i: -rows.lengths[i])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    mine = batches[rank::world]
    # Under sharded weights every process has to take part in every pass.
    turns = -(-len(batches) // world)
    todo = mine + batches[:1] * (turns - len(mine))
    parts = together(lambda: [score([rows[i] for i in batch]) for batch in todo])
    shares = gather_shares([part.tolist() for part in parts[: len(mine)]])
    values = torch.empty(len(rows), parts[0].shape[1])
    for other, found in enumerate(shares):
        for batch, part in zip(batches[other::world], found, strict=True):
            values[batch] = torch.tensor(part)
    return values


def _verify(found: Tensor, rows: Rows, score: Score, path: Path, tolerance: float) -> None:
    for index in sorted({round(i * (len(rows) - 1) / (_CHECKED - 1)) for i in range(_CHECKED)}):
        row = rows[index]
        now, then = score([row])[0].cpu(), found[index]
        if not torch.allclose(now, then, rtol=tolerance, atol=tolerance):
            raise TrainingError(
                f"{path} holds {then.tolist()} for source row {row['row']}, and the reference "
                f"gives {now.tolist()}: it is another model's, or damaged. Delete the file."
            )


def _read(path: Path, count: int) -> Tensor | None:
    """None when the file is missing, damaged or of another number of rows."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)["logprobs"]
    except (OSError, SafetensorError, KeyError):
        return None
    return found if len(found) == count else None


def _write(path: Path, values: Tensor) -> None:
    """By one process a machine."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if this_process().size == 1 or join().is_local_main_process:
        with appearing(path) as temporary:
            try:
                save_file({"logprobs": values}, temporary)
            except SafetensorError as error:  # the writer's own name for what the disk refused
                raise disk_error(path, error) from error
