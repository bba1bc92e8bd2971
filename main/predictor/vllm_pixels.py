"""The images of a prompt as vLLM's processed input: our pixels, those that transformers sees.

vLLM's own processors are not asked: they would resize anew, and know no sizes for a single image.
"""

import hashlib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from main.errors import ConfigError, ModelError
from main.vision import VisionProcessor, Visual

if TYPE_CHECKING:
    import torch

OWN_PIXELS = {"mm_device_do_normalize": False}  # engine argument: ours are normalised already


def check_torchvision(model: Any) -> None:
    """vLLM's classes of models with vision import torchvision, whatever is asked of them.

    Raises:
        ModelError: it is not installed.
    """
    if find_spec("torchvision") is None:
        raise ModelError(
            f"'{model}' reads images, and vLLM cannot open such a model without torchvision, "
            "which has no build for vLLM's CPU version. Use main.predictor.hf, which reads images "
            "without it, or vLLM on a GPU (pip install '.[vllm]' brings torchvision)."
        )


def image_input(
    prompt_ids: Sequence[int],
    visuals: Sequence[Visual],
    vision: VisionProcessor,
    dtype: "torch.dtype",
) -> dict[str, Any]:
    """What vLLM's multimodal engine input has beside the token ids; {} of a prompt without images.

    Args:
        prompt_ids: with one placeholder for each feature of each image.
        dtype: of the engine's weights.

    Raises:
        ConfigError: a video.
        DataError, MissingFileError: an image that cannot be read.
    """
    if not visuals:
        return {}
    from vllm.multimodal.inputs import MultiModalKwargsItems

    for visual in visuals:
        if visual.kind != "image":
            raise ConfigError(
                f"vllm.Predictor takes images, not videos ({visual.name}). Use main.predictor.hf, "
                "or give the frames as images."
            )
    features = [vision.features(visual) for visual in visuals]
    items = [_item(_cast(one, dtype)) for one in features]
    return {
        "mm_kwargs": MultiModalKwargsItems({"image": items}),
        "mm_hashes": {"image": [_digest(one) for one in features]},
        "mm_placeholders": {"image": list(_places(prompt_ids, visuals, vision))},
    }


def _cast(features: "dict[str, torch.Tensor]", dtype: "torch.dtype") -> "dict[str, torch.Tensor]":
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in features.items()}


def _item(features: "dict[str, torch.Tensor]") -> Any:
    """vLLM's item of one image; sizes stay on the CPU, where positions are made of them."""
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems

    fields = {
        name: MultiModalFieldConfig.batched("image", keep_on_cpu=name != "pixel_values")
        for name in features
    }
    if "image_grid_thw" in features:  # Qwen's patches of all images stand in one row
        patches = features["image_grid_thw"].prod(-1)
        fields["pixel_values"] = MultiModalFieldConfig.flat_from_sizes("image", patches)
    return MultiModalKwargsItems.from_hf_inputs(BatchFeature(features), fields)["image"][0]


def _digest(features: "dict[str, torch.Tensor]") -> str:
    """The key under which vLLM keeps the features that its vision tower made of an image."""
    digest = hashlib.sha256()
    for name, tensor in sorted(features.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _places(
    prompt_ids: Sequence[int], visuals: Sequence[Visual], vision: VisionProcessor
) -> Iterator[Any]:
    """Where each image's tokens stand."""
    from vllm.multimodal.inputs import PlaceholderRange

    end, ids = 0, list(prompt_ids)
    for visual in visuals:
        start = ids.index(vision.token_id(visual), end)
        length = sum(vision.runs(visual))
        yield PlaceholderRange(offset=start, length=length)
        end = start + length
