"""Token-by-token decoding of a batch of prompts; finished rows leave the batch at once."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from main.errors import GenerationError
from main.predictor.decoding import Decoding
from main.predictor.keeps_states import keeps_states
from main.predictor.sampling import GenerationOptions
from main.predictor.states import Recomputed, State, decode_with


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
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                waiting += _halves(batch, error)
                _free()


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


def _halves(batch: list[Decoding], error: RuntimeError) -> list[list[Decoding]]:
    """Second half first: the list of waiting batches is taken from its end."""
    batch = [row for row in batch if not row.finished]
    if len(batch) == 1:
        row = batch[0]
        raise GenerationError(
            f"out of memory for one request alone: {len(row.prompt_ids)} prompt tokens and up to "
            f"{row.limit} new ones. Shorten the prompt, lower max_new_tokens or use "
            "quantization='4bit'."
        ) from error
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
