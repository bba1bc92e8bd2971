"""Token-by-token decoding of a batch of prompts; finished rows leave the batch at once."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from main.errors import GenerationError
from main.predictor.decoding import Decoding
from main.predictor.keeps_states import keeps_states
from main.predictor.sampling import GenerationOptions
from main.predictor.states import Recomputed, State, decode_with
from main.system.memory import is_out_of_memory, release
from main.system.processes import splits_copies


def decode(
    model: Any,
    rows: Sequence[Decoding],
    options: GenerationOptions,
    stop_ids: Collection[int],
    pad_id: int,
    logprobs: bool = False,
    vision: Any = None,
) -> Iterator[list[Decoding]]:
    """Yield the rows that got a token, until all are finished.

    The caller may set `finished` of a row between two steps. When memory runs out, the batch is
    halved and each half goes on from the tokens that it has. With `logprobs` the rows collect those
    of their tokens, see `chosen_logprobs`. `vision` makes the pixels of their images, see
    `main.vision.VisionProcessor`.

    Raises:
        GenerationError: a single row does not fit into memory.
    """
    kind = State if keeps_states(model) else Recomputed
    waiting = [list(rows)]
    with _contiguous_states(model):
        while waiting:
            running = [row for row in waiting.pop() if not row.finished]
            batch = sorted(running, key=lambda row: -row.length)
            if not batch:
                continue
            try:
                yield from decode_with(
                    kind(model, batch, options, pad_id, logprobs, vision), batch, stop_ids
                )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                waiting += _halves(batch, error)
                release(error)


@contextmanager
def _contiguous_states(model: Any) -> Iterator[None]:
    """The head gets the prompts' last states (B, 1, H) as a tensor of their own.

    Of a view into (B, P, H) torch makes a batched product, with a copy of the head for every row.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(), *states[1:]))
    try:
        yield
    finally:
        hook.remove()


def _halves(batch: list[Decoding], error: Exception) -> list[list[Decoding]]:
    """Second half first: the list of waiting batches is taken from its end."""
    batch = [row for row in batch if not row.finished]
    if splits_copies():
        raise GenerationError(
            f"out of memory for {len(batch)} requests at once, by a model that is split between "
            "processes and cannot go on with fewer. Ask for fewer at once (sampling_batch_size)."
        ) from error
    if len(batch) == 1:
        row = batch[0]
        alone = GenerationError(
            f"out of memory for one request alone: {len(row.prompt_ids)} prompt tokens and up to "
            f"{row.limit} new ones. Shorten the prompt, lower max_new_tokens or use "
            "quantization='4bit'."
        )
        alone.request = row.index
        raise alone from error
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]
