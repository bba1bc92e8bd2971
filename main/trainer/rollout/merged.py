"""The weights of the policy as one model, for a sampler that knows no adapters."""

from pathlib import Path
from typing import Any

from main.models.merging import adapted_layers, merged_weights


def merged_size(policy: Any) -> int:
    """Bytes of `merged_weights`."""
    weights = [layer.get_base_layer().weight for layer in adapted_layers(policy).values()]
    return sum(weight.numel() * weight.element_size() for weight in weights)


def save_merged(policy: Any, folder: Path) -> None:
    """`merged_weights` as a checkpoint; the rest of the base is not in it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(dict(merged_weights(policy)), folder / "model.safetensors")
