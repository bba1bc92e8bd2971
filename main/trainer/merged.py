"""The weights of the policy as one model, for a server that knows no adapters."""

from collections.abc import Iterator
from typing import Any

import torch

from main.adapters import ADAPTER


def merged_weights(policy: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name in the base model, W + s B A) of each layer that carries an adapter.

    The policy stays as it is: merging in place and taking the adapter out again would leave the
    rounding of both in the base weights.
    """
    from peft.tuners.lora import LoraLayer

    base = policy.get_base_model()
    for name, layer in base.named_modules():
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A:
            weight = layer.get_base_layer().weight
            delta = layer.get_delta_weight(ADAPTER)  # type: ignore[attr-defined]
            with torch.no_grad():
                yield f"{name}.weight", (weight.float() + delta.float()).to(weight.dtype)
