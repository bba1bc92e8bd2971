"""LoRA adapters trained on the original code, for the Glm that its weights become here.

    y = x W^T + s (x A^T) B^T, the rows of W and B being those of q, k and v

so q, k and v each take the whole of A and their own rows of B (and of DoRA's magnitudes).
"""

from typing import TYPE_CHECKING, Any

from main.chatglm.weights import new_names, split_rows
from main.errors import ModelError

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
LORA = ".lora_"


def is_original(tensors: "dict[str, torch.Tensor]") -> bool:
    """Whether an adapter's tensors have the names of the original code's layers."""
    return any(name.startswith(f"{PREFIX}transformer.") for name in tensors)


def translate(
    config: Any, tensors: "dict[str, torch.Tensor]", model_config: Any
) -> "tuple[Any, dict[str, torch.Tensor]]":
    """peft's configuration and the tensors of an original adapter, for a model of `model_config`.

    Raises:
        ModelError: what has no counterpart in Glm's layers, or rows of another checkpoint.
    """
    _refuse(config, tensors)
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        renamed |= _rename(name, tensor, model_config)
    config.target_modules = sorted({name.partition(LORA)[0].rpartition(".")[2] for name in renamed})
    config.auto_mapping = None
    return config, renamed


def _refuse(config: Any, tensors: "dict[str, torch.Tensor]") -> None:
    fitted = config.init_lora_weights not in (True, False, "gaussian")
    problems = {
        "ranks or scales of single layers": config.rank_pattern or config.alpha_pattern,
        "tensors other than LoRA's": not all(LORA in name for name in tensors),
        f"a base changed by init_lora_weights={config.init_lora_weights!r}": fitted,
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ModelError(
            f"the adapter was trained on ChatGLM's original code with {found[0]}, which is not "
            "translated to transformers' Glm. Merge it into its base with that code, and load the "
            "merged folder."
        )


def _rename(name: str, tensor: "torch.Tensor", config: Any) -> "dict[str, torch.Tensor]":
    module, _, part = name.removeprefix(PREFIX).partition(LORA)
    names = [new.removesuffix(".weight") for new in new_names(f"{module}.weight")]
    if len(names) == 1:
        parts = [tensor]
    elif part.startswith("A."):
        parts = [tensor.clone() for _ in names]
    else:
        parts = split_rows(name, tensor, config)
    return {f"{PREFIX}{new}{LORA}{part}": t for new, t in zip(names, parts, strict=True)}
