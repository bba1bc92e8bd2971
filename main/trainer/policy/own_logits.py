"""Whether hidden states times output layer give a model's own logits, and whether it looks ahead.

Some families multiply, cap or shift after the output layer, or run something between the two; some
are made to fill gaps, and what they say of a token depends on those that follow it.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from main.models.probe import Question, answer, enliven, some_ids

log = logging.getLogger(__name__)

Score = Callable[[Any, Tensor, Tensor], Tensor]  # (causal model, ids, loss mask) -> log-probs (N,)

TOLERANCE = 1e-4  # nats in float32
AHEAD = 1e-2  # nats in float32 of a lively copy: tokens that see each other move them by more
HIDDEN_STATES, WHOLE, LOOKS_AHEAD = "hidden states", "its own", "looks ahead"


def logits_of(model: Any, score: Score) -> str:
    """What log-probabilities are taken from: 'hidden states', 'its own' logits, or 'looks ahead'.

    Args:
        model: a causal language model of transformers.
        score: log-probabilities from hidden states.
    """
    question = Question(
        "where its logits come from",
        version=2,
        copy=lambda small: _of_copy(small, score),
        itself=lambda model: _of_itself(model, score),
        unknown=HIDDEN_STATES,
    )
    found = answer(model, question)
    if found == WHOLE:
        _tell(type(model).__name__)
    return found


@functools.cache
def _tell(name: str) -> None:
    log.warning(
        "%s computes its logits in a way of its own: log-probabilities are taken from its whole "
        "logits, which needs more memory.",
        name,
    )


def _of_copy(model: Any, score: Score) -> str:
    differs = _differs(model, score)
    enliven(model)
    if looks_ahead(model):
        return LOOKS_AHEAD
    return WHOLE if differs else HIDDEN_STATES


def _differs(model: Any, score: Score) -> bool:
    ids, weight = some_ids(model, 2, 8), _first_weight(model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    pulls = torch.linspace(-1, 1, int(mask.sum()))
    with torch.enable_grad():
        own = _own_logprobs(model, ids)
        try:
            ours = score(model, ids, mask)
        except Exception:  # it runs, and has no hidden states where others have them
            return True
        slopes = [torch.autograd.grad((found * pulls).sum(), weight)[0] for found in (ours, own)]
    weight.requires_grad_(False)
    scale = slopes[1].abs().max().clamp(min=1e-3)
    return not (
        float((ours - own).detach().abs().max()) <= TOLERANCE * 5
        and float((slopes[0] - slopes[1]).abs().max() / scale) <= TOLERANCE * 10
    )


@torch.no_grad()
def looks_ahead(model: Any) -> bool:
    """Whether what it says of a token changes with those after it, or with padding after it."""
    ids = some_ids(model, 1, 12)
    before = ids[:, :6]
    others = [torch.cat([before, ids[:, 6:].flip(1)], 1), torch.nn.functional.pad(before, (0, 6))]
    found = [_own_logprobs(model, row)[:5] for row in (ids, *others)]
    gap = max(float((found[0] - other).abs().max()) for other in found[1:])
    return not gap <= (AHEAD if model.dtype == torch.float32 else 0.5)


@torch.no_grad()
def _of_itself(model: Any, score: Score) -> str:
    """The model's own weights in their dtype, log-probabilities alone."""
    training = model.training
    ids = some_ids(model, 2, 8)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    model.eval()
    try:
        if looks_ahead(model):
            return LOOKS_AHEAD
        gap = (score(model, ids, mask) - _own_logprobs(model, ids)).abs().max()
    finally:
        model.train(training)
    close = float(gap) <= (TOLERANCE * 10 if model.dtype == torch.float32 else 0.1)
    return HIDDEN_STATES if close else WHOLE


def _own_logprobs(model: Any, ids: Tensor) -> Tensor:
    """Of every token but the first of each row, row by row."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()


def _first_weight(model: Any) -> Tensor:
    """The first matrix below embedding and output layer, made to take a gradient."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(layer.weight) for layer in layers}
    matrices = (p for p in model.parameters() if p.ndim == 2 and id(p) not in outer)
    return next(matrices).requires_grad_(True)
