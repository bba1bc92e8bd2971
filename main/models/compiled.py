"""The layers of a model compiled, each as a whole: one graph for all of them, of any length.

What lies between the products of a layer (norms, activations, positions, residuals) becomes a few
kernels, and what is cheap to compute is computed again in the backward pass instead of being kept.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from main.models.ragged import HALF


def compile_problems(model: Any, bf16: bool, one_copy: bool) -> list[str]:
    """Why the layers of a model cannot be compiled with gain."""
    if model.device.type != "cuda":
        return [f"torch_compile=True needs a GPU: the model is on {model.device}."]
    if not (bf16 or model.dtype in HALF):
        return [
            "torch_compile=True needs bf16=True or dtype='bfloat16': in float32 every batch would "
            "be compiled anew."
        ]
    if not one_copy:
        return ["torch_compile=True needs a whole model in each process: leave it out here."]
    return []


def compile_layers(model: nn.Module) -> Callable[[], None]:
    """Compile every layer of the transformers model inside `model`; returns what undoes it."""
    kinds = {
        kind for part in model.modules() for kind in getattr(part, "_no_split_modules", None) or ()
    }
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    for layer in layers:
        layer.compile(dynamic=True)

    def undo() -> None:
        for layer in layers:
            layer._compiled_call_impl = None

    return undo
