"""LLaVA (arXiv 2304.08485) and LLaVA-NeXT: images through a fixed-size vision tower."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from main.vision.image import image_size, open_image
from main.vision.media import Visual
from main.vision.processor import Inputs, VisionProcessor
from main.vision.sizes import fit_pixels

if TYPE_CHECKING:
    import torch


class LlavaVision(VisionProcessor):
    """Every image makes the same number of tokens; sizes of a message scale it beforehand."""

    token_fields: ClassVar = {"image": "image_token_id"}

    def runs(self, visual: Visual) -> list[int]:
        self.token_id(visual)
        return [self._tile_tokens]

    def features(self, visual: Visual) -> Inputs:
        image = open_image(visual.source)
        height, width = _target(image.height, image.width, visual)
        if (width, height) != image.size:
            image = image.resize((width, height), self.image_processor.resample)
        return dict(self.image_processor([image], return_tensors="pt"))

    def joined(self, parts: Sequence[Inputs]) -> Inputs:
        import torch

        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    @cached_property
    def _tile_tokens(self) -> int:
        """Features of one tile: patches, and the class token where the model keeps it."""
        height, width = self._tile
        patch = self.config.vision_config.patch_size
        return (height // patch) * (width // patch) + self._class_tokens

    @cached_property
    def _tile(self) -> tuple[int, int]:
        """(height, width) of what the vision tower sees, as the image processor makes it."""
        from PIL import Image

        made = self.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")
        return tuple(made["pixel_values"].shape[-2:])

    @property
    def _class_tokens(self) -> int:
        """CLIP puts a class token first; the strategy 'default' takes the first feature away."""
        towers_with = ("clip_vision_model", "chinese_clip_vision_model")
        own = int(self.config.vision_config.model_type in towers_with)
        return own - int(self.config.vision_feature_select_strategy == "default")


class LlavaNextVision(LlavaVision):
    """The image in tiles at a higher resolution, without the padding, after a small one."""

    def runs(self, visual: Visual) -> list[int]:
        import torch
        from transformers.models.llava_next.modeling_llava_next import (
            get_anyres_image_grid_shape,
            unpad_image,
        )

        self.token_id(visual)
        size = _target(*image_size(visual.source), visual)
        tile = self._tile[0]
        patches = tile // self.config.vision_config.patch_size
        rows, columns = get_anyres_image_grid_shape(size, self.config.image_grid_pinpoints, tile)
        grid = unpad_image(torch.empty(1, rows * patches, columns * patches), size)
        # every row of the grid ends in a newline feature
        return [grid.shape[1] * (grid.shape[2] + 1) + self._tile_tokens]

    def joined(self, parts: Sequence[Inputs]) -> Inputs:
        """Images of unlike numbers of tiles; the model takes as many as each has."""
        import torch

        tiles = max(part["pixel_values"].shape[1] for part in parts)
        pixels = [_padded(part["pixel_values"], tiles) for part in parts]
        sizes = [part["image_sizes"] for part in parts]
        return {"pixel_values": torch.cat(pixels), "image_sizes": torch.cat(sizes)}


def _padded(pixels: "torch.Tensor", tiles: int) -> "torch.Tensor":
    """(1, n, C, H, W) -> (1, tiles, C, H, W)."""
    from torch.nn.functional import pad

    return pad(pixels, (0, 0, 0, 0, 0, 0, 0, tiles - pixels.shape[1]))


def _target(height: int, width: int, visual: Visual) -> tuple[int, int]:
    """The size that the message asks for; the image's own where it says nothing."""
    if visual.resized_height and visual.resized_width:
        return visual.resized_height, visual.resized_width
    least: Any = visual.min_pixels or 1
    most: Any = visual.max_pixels or float("inf")
    return fit_pixels(height, width, 1, least, most)
