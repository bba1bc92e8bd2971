"""Whether a family can go on from what it keeps of earlier tokens: measured on a small copy."""

import functools
import logging
from typing import Any

import torch

from main.models.probe import Question, answer, enliven, some_ids
from main.predictor.decoding import Decoding
from main.predictor.sampling import GenerationOptions
from main.predictor.states import State, base_of, decode_with

log = logging.getLogger(__name__)

KEEPS, RECOMPUTES = "keeps states", "recomputes"
CLOSE = (0.3, 1e-3)  # nats, in half precision and in float32


def keeps_states(model: Any) -> bool:
    """Whether answers to a batch, from states that are kept, are those of each row computed whole.

    Told once of a family of which they are not.
    """
    base = base_of(model)
    question = Question("how it is decoded", 2, _of_copy, _measured, KEEPS)
    if answer(base, question) == KEEPS:
        return True
    _tell(type(base).__name__)
    return False


@functools.cache
def _tell(name: str) -> None:
    log.warning(
        "%s cannot go on from the states that it keeps of a batch: each token is computed with all "
        "that is before it, which takes longer.",
        name,
    )


def _of_copy(model: Any) -> str:
    enliven(model)
    return _measured(model)


def _measured(model: Any) -> str:
    """Three rows of unequal length, five tokens, against whole rows."""
    ids = some_ids(model, 1, 9)[0].tolist()
    rows = [Decoding(i, ids[:count], 5) for i, count in enumerate((9, 5, 3))]
    try:
        for _ in decode_with(State(model, rows, GenerationOptions(), 0, True, None), rows, ()):
            pass
    except Exception as error:  # the model's own: it takes no such cache
        log.debug("decoding a copy of %s: %s", type(model).__name__, error)
        return RECOMPUTES
    gaps = [abs(_whole(model, row) - torch.tensor(row.logprobs)).max() for row in rows]
    return KEEPS if float(max(gaps)) <= CLOSE[model.dtype == torch.float32] else RECOMPUTES


@torch.no_grad()
def _whole(model: Any, row: Decoding) -> torch.Tensor:
    """Log-probabilities (T,) of the answer's tokens, of the row in one pass."""
    ids = torch.tensor([row.prompt_ids + row.completion_ids], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    scores = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return scores[len(row.prompt_ids) - 1 :].cpu()
