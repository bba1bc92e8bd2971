"""A key/value cache that is written in place instead of being copied at every token."""

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

BLOCK = 128  # tokens for which there is room beyond those that are there


class GrowingLayer(DynamicLayer):
    """Keys and values (B, heads, tokens, size) as views of storage with room for more tokens.

    The same numbers as `DynamicLayer`, whose `update` copies the whole cache for each new token.
    The room grows as answers do: most end long before their limit.

    capacity: tokens that there can be at most.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity = capacity
        self.storage: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append and return all keys and values so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.storage is None or end > self.storage[0].shape[-2]:
            self.storage = (self._room(key_states, end), self._room(value_states, end))
            if self.keys is not None and self.values is not None and start:
                self.storage[0][..., :start, :] = self.keys
                self.storage[1][..., :start, :] = self.values
        keys, values = self.storage
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values

    def _room(self, states: torch.Tensor, needed: int) -> torch.Tensor:
        batch, heads, _, size = states.shape
        return states.new_empty(batch, heads, self._tokens(needed), size)

    def _tokens(self, needed: int) -> int:
        """A block more than needed, or a quarter, so that copies cost little in all."""
        return max(needed, min(self.capacity, needed + max(BLOCK, needed // 4)))

    def fill(self, parts: list[tuple[Any, Any]], width: int) -> None:
        """Take over the keys and values of several batches, right-aligned at `width` tokens."""
        self.lazy_initialization(*parts[0])
        self.storage = (
            self._aligned([keys for keys, _ in parts], width),
            self._aligned([values for _, values in parts], width),
        )
        self.keys, self.values = (part[..., :width, :] for part in self.storage)

    def _aligned(self, parts: list[torch.Tensor], width: int) -> torch.Tensor:
        rows = sum(len(part) for part in parts)
        _, heads, _, size = parts[0].shape
        # zeros: a masked weight of 0 times a stray NaN in the padding would be NaN
        room = parts[0].new_zeros(rows, heads, self._tokens(width), size)
        start = 0
        for part in parts:
            room[start : start + len(part), :, width - part.shape[-2] : width] = part
            start += len(part)
        return room

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows; the rest's memory is given back."""
        if self.storage is None:
            return
        length = self.get_seq_length()
        self.storage = (self.storage[0][indices], self.storage[1][indices])
        self.keys, self.values = (part[..., :length, :] for part in self.storage)


def new_cache(model: Any, capacity: int) -> DynamicCache:
    """An empty cache for `model`; layers of full attention grow to `capacity` tokens at most."""
    cache = DynamicCache(config=model.config)
    cache.layers = [
        GrowingLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def can_drop_rows(cache: DynamicCache) -> bool:
    """Whether rows may leave the batch; recurrent states (Mamba) cannot be selected by row."""
    return all(type(layer) in (GrowingLayer, DynamicSlidingWindowLayer) for layer in cache.layers)


def can_join(cache: DynamicCache) -> bool:
    """Whether `join` applies: every layer keeps all tokens."""
    return all(type(layer) is GrowingLayer for layer in cache.layers)


def join(parts: list[DynamicCache], capacity: int) -> DynamicCache:
    """One cache with the rows of all parts, each filled up on the left to the longest.

    `parts` are emptied layer by layer, so that nothing but one layer is held twice.
    """
    width = max(part.get_seq_length() for part in parts)
    joined = parts[0]
    for i in range(len(joined.layers)):
        layer = GrowingLayer(capacity)
        layers: list[Any] = [part.layers[i] for part in parts]
        layer.fill([(old.keys, old.values) for old in layers], width)
        for part in parts:
            part.layers[i] = layer
    return joined
