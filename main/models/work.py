"""How much arithmetic the passes of a model need, whatever they are made of.

A token costs 2 FLOPs for each entry of a matrix that it meets, 2 more for the gradient of what goes
in, and another 2 where the matrix itself is trained (Kaplan et al., arXiv 2001.08361, section 2.1).
The output layer counts at the scored tokens alone. Left out are attention's own products, what is
done to single elements, a vision tower, padding, and what is computed a second time to save memory:
it is what has to be done.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from main.models.adaptable import language_part
from main.models.experts import chosen_share


class Matrices(NamedTuple):
    """Entries of the matrices of a causal language model.

    frozen, trained: those that every token meets; of a mixture's experts the share of the chosen.
    head: of the output layer. head_trained: whether they are trained.
    largest: rows and columns of the largest one that tokens meet. dtype: of what is multiplied.
    """

    frozen: float
    trained: float
    head: int
    head_trained: bool
    largest: tuple[int, int]
    dtype: torch.dtype


NOTHING = Matrices(0, 0, 0, False, (1, 1), torch.float32)


@dataclass
class Work:
    """FLOPs of all passes so far, in this process."""

    matrices: Matrices
    flops: float = 0.0

    def add(self, tokens: int, scored: int, backward: bool) -> None:
        """A pass over `tokens` of which `scored` ones reach the output layer."""
        of = self.matrices
        frozen, trained = (4, 6) if backward else (2, 2)
        head = trained if of.head_trained else frozen
        self.flops += tokens * (frozen * of.frozen + trained * of.trained)
        self.flops += scored * head * of.head


def matrices_of(causal_lm: Any) -> Matrices:
    """Of a transformers model, with an adapter or without, before its weights are shared out."""
    head = list(_matrices_in(_head(causal_lm), 1.0))
    body = list(_matrices_in(causal_lm, chosen_share(causal_lm), language_part(causal_lm)))
    frozen = [matrix for matrix in body if not matrix.learns]
    return Matrices(
        frozen=sum(matrix.met for matrix in frozen),
        trained=sum(matrix.met for matrix in body if matrix.learns),
        head=int(sum(matrix.met for matrix in head)),
        head_trained=any(matrix.learns for matrix in head),
        largest=max((matrix.shape for matrix in frozen), key=math.prod, default=(1, 1)),
        dtype=causal_lm.dtype,
    )


class _Matrix(NamedTuple):
    shape: tuple[int, int]
    met: float  # entries that a token meets
    learns: bool


def _matrices_in(module: nn.Module | None, chosen: float, inside: str = "") -> Iterator[_Matrix]:
    """Those of linear layers, and of experts the `chosen` share; the output layer's are not."""
    if module is None:
        return
    head = _head(module)
    passed_over = set() if head is None else set(head.modules())
    for name, part in module.named_modules():
        if not f"{name}.".startswith(inside) or "original_module" in name or part in passed_over:
            continue
        if isinstance(part, nn.Linear):
            shape = part.out_features, part.in_features  # quantized weights have another
            yield _Matrix(shape, math.prod(shape), part.weight.requires_grad)
        elif not isinstance(part, nn.Embedding):
            yield from _loose(part, chosen)


def _head(module: Any) -> nn.Module | None:
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def _loose(module: nn.Module, chosen: float) -> Iterator[_Matrix]:
    """Matrices that are parameters of another module: of GPT-2's layers, routers and experts."""
    for weight in module.parameters(recurse=False):
        rows, columns = weight.shape[-2:] if weight.ndim in (2, 3) else (0, 0)
        if rows and columns:
            share = chosen * len(weight) if weight.ndim == 3 else 1.0
            yield _Matrix((rows, columns), rows * columns * share, weight.requires_grad)
