"""The weights of the policy as one model, for a sampler that knows no adapters."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from main.adapters import ADAPTER


def adapted_layers(policy: Any) -> dict[str, Any]:
    """peft's layers that carry the adapter, by their names in the base model."""
    from peft.tuners.lora import LoraLayer

    return {
        name: layer
        for name, layer in policy.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A
    }


def can_be_merged(policy: Any) -> bool:
    """Whether each adapted weight is a plain matrix of its own: not packed, not the embedding's."""
    tied = policy.get_base_model().get_input_embeddings().weight
    layers = [layer.get_base_layer() for layer in adapted_layers(policy).values()]
    return all(type(layer) is nn.Linear and layer.weight is not tied for layer in layers)


def merged_size(policy: Any) -> int:
    """Bytes of `merged_weights`."""
    weights = [layer.get_base_layer().weight for layer in adapted_layers(policy).values()]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def save_merged(policy: Any, folder: Path) -> None:
    """`merged_weights` as a checkpoint; the rest of the base is not in it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(dict(merged_weights(policy)), folder / "model.safetensors")


def merged_weights(policy: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the base model, W + s B A) of each layer that carries an adapter.

    The policy stays as it is: merging in place and taking the adapter out again would leave the
    rounding of both in the base weights.
    """
    for name, layer in adapted_layers(policy).items():
        with torch.no_grad():
            weight, delta = layer.get_base_layer().weight, layer.get_delta_weight(ADAPTER)
            merged = (weight.float() + delta.float()).to(weight.dtype)
        yield f"{name}.weight", merged
