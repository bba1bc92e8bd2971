"""The one way to merge an adapter into its base, proved on a probe.

    W' = W + s B A                                        (LoRA, arXiv 2106.09685, section 4.1)

What adapters do is not always a change of weights: a bias that no layer has, one weight that two
layers share, blocks used twice. So the outputs of merged and adapted model are compared before the
adapter is given up; where they differ, it stays beside the base as it was.
"""

import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from main.errors import ModelError
from main.models.load import Quantization, load_model
from main.models.logits import largest_difference, probe_prompts, prompt_logits

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

TOLERANCE = 0.01  # most that merging in float32 may change a logit
SHARE = 1e-4  # or this part of the largest one, where logits are large


class Merge(NamedTuple):
    """What merging came to.

    model: the base with the adapter's weights; the adapted model as it was if `problem`.
    difference: the largest between a logit of the adapted and of the merged model.
    problem: why the adapter was not merged; '' if it was.
    """

    model: Any
    difference: float
    problem: str = ""


def merge(
    adapted: Any, probe: list[list[int]] | None = None, tolerance: float | None = None
) -> Merge:
    """Merge in place, if the outputs stay.

    Args:
        adapted: a PEFT model whose base is neither quantised nor below float32, which would round
            the adapter away.
        probe: ids of prompts to compare on; None = some of the whole vocabulary.
        tolerance: largest difference of a logit; None = 0.01, or more where logits are large.

    Raises:
        ModelError: the outputs changed when peft's wrappers were taken off.
    """
    probe = probe_prompts(adapted.get_base_model()) if probe is None else probe
    expected = prompt_logits(adapted, probe)
    if tolerance is None:
        largest = max(float(logits.abs().max()) for logits in expected)
        tolerance = max(TOLERANCE, SHARE * largest)
    tied = _untie(adapted.get_base_model())
    problem = _merge_layers(adapted) or _changed(expected, adapted, probe, tolerance)
    if problem:
        _take_back(adapted, tied)
        return Merge(adapted, float("nan"), problem)
    with warnings.catch_warnings():  # peft's about untied layers: `_tie_if_equal` sees to them
        warnings.filterwarnings("ignore", message=".*no longer tied after merging")
        model = adapted.merge_and_unload()
    if tied:
        _tie_if_equal(model)
    problem = _changed(expected, model, probe, tolerance)
    if problem:
        raise ModelError(f"{problem}: the merged model cannot be used. Use it unmerged.")
    return Merge(model, largest_difference(expected, prompt_logits(model, probe)))


def merge_or_keep(adapted: Any) -> Any:
    """The merged model, or, said in one line, the adapted one where merging would change it."""
    merged = merge(adapted)
    if merged.problem:
        log.warning("The adapter stays beside its base, a little slower: %s.", merged.problem)
    return merged.model


def _merge_layers(adapted: Any) -> str:
    """Merge every layer, peft's wrappers stay; what peft says where it cannot."""
    try:
        adapted.merge_adapter(safe_merge=True)
    except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
        return f"peft cannot merge it ({str(error).splitlines()[0].rstrip('.')})"
    return ""


def _changed(
    expected: "list[torch.Tensor]", model: Any, probe: list[list[int]], tolerance: float
) -> str:
    difference = largest_difference(expected, prompt_logits(model, probe))
    if difference <= tolerance:
        return ""
    return (
        f"merging in float32 changed a logit by {difference:.3g}, more than the tolerance of "
        f"{tolerance:g}"
    )


def _take_back(adapted: Any, tied: bool) -> None:
    """Take the adapter out of those layers that it was merged into."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in adapted.modules():
        if isinstance(module, BaseTunerLayer) and module.merged:
            module.unmerge()
    if tied:
        model = adapted.get_base_model()
        embedding = _original(model.get_input_embeddings())
        _original(model.get_output_embeddings()).weight = embedding.weight


def _untie(model: Any) -> bool:
    """Give a tied output layer its own weight, lest merging one layer change the other."""
    import torch

    output = model.get_output_embeddings()
    if output is None:
        return False
    layer, embedding = _original(output), _original(model.get_input_embeddings())
    adapted = layer is not output or embedding is not model.get_input_embeddings()
    tied = adapted and layer.weight is embedding.weight
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


def adapted_layers(policy: Any) -> dict[str, Any]:
    """peft's layers that carry the adapter, by their names in the base model."""
    from peft.tuners.lora import LoraLayer

    return {
        name: layer
        for name, layer in policy.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and layer.lora_A
    }


def is_a_change_of_weights(policy: Any) -> bool:
    """Whether W + s B A of plain matrices says all that the adapter does, no weight shared.

    Not so packed weights, experts, an embedding or what is tied to it, a bias, blocks used twice.
    """
    layers = list(adapted_layers(policy).values())
    bases = [layer.get_base_layer() for layer in layers]
    own = len({id(base.weight) for base in bases if hasattr(base, "weight")}) == len(bases)
    tied = policy.get_base_model().get_input_embeddings().weight
    return own and all(
        type(base) is _linear() and base.weight is not tied and not any(layer.lora_bias.values())
        for base, layer in zip(bases, layers, strict=True)
    )


def _linear() -> Any:
    import torch

    return torch.nn.Linear


def merged_weights(policy: Any) -> "Iterator[tuple[str, torch.Tensor]]":
    """(name in the base model, W + s B A) of each layer that carries the adapter.

    The policy stays as it is: merging in place and taking the adapter out again would leave the
    rounding of both in the base weights.

    Raises:
        ModelError: the adapter is more than that, see `is_a_change_of_weights`.
    """
    import torch

    if not is_a_change_of_weights(policy):
        raise ModelError(
            "this adapter is no change of its base's weights alone (packed or shared weights, an "
            "adapted embedding that the output layer shares, a bias): it cannot be sent merged."
        )
    for name, layer in adapted_layers(policy).items():
        (adapter,) = layer.lora_A
        with torch.no_grad():
            weight, delta = layer.get_base_layer().weight, layer.get_delta_weight(adapter)
            merged = (weight.float() + delta.float()).to(weight.dtype)
        yield f"{name}.weight", merged
