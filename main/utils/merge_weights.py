"""The arithmetic of merging: full-precision base, adapter added, output layer untied if need be."""

import warnings
from typing import Any

from main.errors import ModelError
from main.models import Quantization, load_model


def full_precision_base(
    base: Any, quantization: Quantization | None, device: Any, trust_remote_code: bool
) -> Any:
    """The base in float32; one that is quantised, or to be taken as such, dequantised.

    Raises:
        ModelError: it is quantised in a way that cannot be undone.
    """
    import torch

    model = load_model(
        base,
        dtype="float32",
        device=device,
        quantization=quantization,
        trust_remote_code=trust_remote_code,
    )
    if not getattr(model, "is_quantized", False):
        return model.float()
    try:
        model = model.dequantize(dtype=torch.float32).float()
    except NotImplementedError as error:
        raise ModelError(
            f"'{base}' is quantised by {model.config.quantization_config.quant_method}, "
            "which transformers cannot dequantise. Merge into the original base model."
        ) from error
    # how the quantised file was read must not be undone when the full weights are saved
    model.__dict__.pop("_weight_conversions", None)
    return model


def merge_adapter(adapted: Any) -> Any:
    """The base with the adapter's weights; an output layer of its own where they differ now."""
    tied = _untie(adapted.get_base_model())
    with warnings.catch_warnings():  # peft's about untied layers: `_tie_if_equal` sees to them
        warnings.filterwarnings("ignore", message=".*no longer tied after merging")
        model = adapted.merge_and_unload(safe_merge=True)
    if tied:
        _tie_if_equal(model)
    return model


def _untie(model: Any) -> bool:
    """Give a tied output layer its own weight, lest merging one layer change the other."""
    import torch

    output = model.get_output_embeddings()
    if output is None:
        return False
    layer, embedding = _original(output), _original(model.get_input_embeddings())
    tied = layer.weight is embedding.weight
    if tied:
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    return tied


def _original(module: Any) -> Any:
    """The base model's layer below peft's wrappers."""
    while True:
        below = getattr(module, "base_layer", None) or getattr(module, "original_module", None)
        if below is None:
            return module
        module = below


def _tie_if_equal(model: Any) -> None:
    """Share the weight of input and output again where merging left them equal."""
    import torch

    output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    equal = torch.equal(output.weight, embedding.weight)
    if equal:
        output.weight = embedding.weight
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = equal
