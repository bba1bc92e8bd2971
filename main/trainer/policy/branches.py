"""A prompt with several answers in one row: the prompt is computed once.

    prompt  answer 1  answer 2      answer 2 attends to the prompt and itself, not to answer 1,
    0 1 2   3 4 5     3 4           and its positions go on from the prompt's

Equal to the prompt repeated before each answer, in values and gradients; P + C + R tokens instead
of 2P + C + R. Prefix sharing for preference pairs: arXiv 2410.20305.
"""

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from main.loaders.collate import pad
from main.models import ragged


def lay_out(
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    pad_id: int,
    share: bool,
) -> dict[str, Any]:
    """B prompts with A answers each -> what a `LogprobModel` scores, padded on the right.

    Returns:
        input_ids (B, T), or (B * A, T) with a row an answer unless `share`; branch of the same
        shape: 0 in prompt and padding, n in the n-th answer of the row; lengths, the tokens of
        each of the B * A answers; rows, of each row the tokens of its prompt and of every answer
        that continues it, or of the whole; if `share`, position_ids.
    """
    lengths = [len(answer) for group in answers for answer in group]
    if not share:
        prompts = [p for p, group in zip(prompts, answers, strict=True) for _ in group]
        answers = [[answer] for group in answers for answer in group]
    rows = [
        ([*prompt, *(token for answer in group for token in answer)], _branch(prompt, group))
        for prompt, group in zip(prompts, answers, strict=True)
    ]
    tensors: dict[str, Any] = {
        "input_ids": pad([ids for ids, _ in rows], pad_id),
        "branch": pad([branch for _, branch in rows], 0),
        "lengths": lengths,
        "rows": [[len(ids)] for ids, _ in rows],
    }
    if share:
        pairs = zip(prompts, answers, strict=True)
        tensors["rows"] = [[len(prompt), *map(len, group)] for prompt, group in pairs]
        positions = [_positions(p, group) for p, group in zip(prompts, answers, strict=True)]
        tensors["position_ids"] = pad(positions, 0)
    return tensors


def visible(branch: Tensor) -> Tensor:
    """(B, T) -> (B, 1, T, T) bool: a token sees the prompt and its own answer up to itself."""
    own = branch[:, :, None] == branch[:, None, :]  # (B, query, key)
    return (own | (branch == 0)[:, None, :]).tril()[:, None]


def takes_branches(causal_lm: Any) -> bool:
    """Whether a model's attention obeys a mask of its own making and position ids in every layer.

    Not so: flash attention (no such mask), sliding windows, chunks and linear layers (they would
    replace the mask or ignore it), distance biases (ALiBi), code from outside transformers.
    """
    config = causal_lm.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        config._attn_implementation in ("sdpa", ragged.NAME)
        and kinds == {"full_attention"}
        and not any(getattr(config, name, None) for name in _OTHER_MASKS)
        and type(causal_lm).__module__.startswith(("transformers.", "main."))
        and "position_ids" in inspect.signature(causal_lm.base_model.forward).parameters
    )


_OTHER_MASKS = ("sliding_window", "attention_chunk_size", "alibi", "attention_window_size")


def _branch(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[int]:
    numbers = [n for n, answer in enumerate(answers, 1) for _ in answer]
    return [0] * len(prompt) + numbers


def _positions(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[int]:
    start = len(prompt)
    return [*range(start), *(start + i for answer in answers for i in range(len(answer)))]
