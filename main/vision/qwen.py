"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images at their own resolution, M-RoPE positions.

arXiv 2409.12191, 2502.13923. A video is made of its frames by the image processor, so that it
needs no video decoder and no torchvision: two frames that follow each other fill the two temporal
slots of a patch.
"""

import inspect
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from main.system.settings import settings_in
from main.vision.image import Clip, clip_of, image_size, open_frames, open_image
from main.vision.media import Visual
from main.vision.processor import Inputs, VisionProcessor, settings_text
from main.vision.sizes import fit_pixels, on_grid

if TYPE_CHECKING:
    import torch

FRAME_TOKENS = (128, 768)  # least and most of a frame, in cells of factor x factor pixels


class QwenVision(VisionProcessor):
    """See the module; `expand`, `inputs` and `positions` agree on the grid of each visual."""

    token_fields: ClassVar = {"image": "image_token_id", "video": "video_token_id"}

    def runs(self, visual: Visual) -> list[int]:
        self.token_id(visual)
        t, h, w = self.grid(visual)
        return [t * h * w // self.image_processor.merge_size**2]

    def grid(self, visual: Visual) -> tuple[int, int, int]:
        """(time, height, width) in patches."""
        patch = self.image_processor.patch_size
        if visual.kind == "image":
            height, width = self._image_target(*image_size(visual.source), visual)
            return 1, height // patch, width // patch
        clip = clip_of(visual)
        height, width = self._frame_target(clip, visual)
        return self._slices(clip), height // patch, width // patch

    def features(self, visual: Visual) -> Inputs:
        import torch

        if visual.kind == "image":
            made = self._image_pixels(visual)
            return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
        return {
            "pixel_values_videos": self._video_pixels(visual),
            "video_grid_thw": torch.tensor([self.grid(visual)]),
            **self._seconds([visual]),
        }

    def joined(self, parts: Sequence[Inputs]) -> Inputs:
        import torch

        names = dict.fromkeys(name for part in parts for name in part)
        return {name: torch.cat([part[name] for part in parts if name in part]) for name in names}

    def token_types(self, ids: "torch.Tensor") -> Inputs:
        """1 where an image token stands, 2 where a video token does."""
        image, video = (ids == self.token_ids[kind] for kind in ("image", "video"))
        return {"mm_token_type_ids": (image + 2 * video).int()}

    def positions(
        self, model: Any, ids: "torch.Tensor", mask: "torch.Tensor", visuals: Sequence[Visual]
    ) -> "torch.Tensor | None":
        """(3, B, T): time, height and width, by the model's own rule; padding counts 0."""
        import torch

        if not visuals:
            return None
        grids = {
            f"{kind}_grid_thw": torch.tensor(found, device=ids.device)
            for kind in ("image", "video")
            if (found := [self.grid(v) for v in visuals if v.kind == kind])
        }
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        place = base.base_model.get_rope_index
        more = self._seconds([v for v in visuals if v.kind == "video"])
        if "second_per_grid_ts" not in inspect.signature(place).parameters:
            more = {}
        found, _ = place(ids, **self.token_types(ids), **grids, **more, attention_mask=mask)
        return found

    def _image_target(self, height: int, width: int, visual: Visual) -> tuple[int, int]:
        if visual.resized_height and visual.resized_width:
            return on_grid(visual.resized_height, visual.resized_width, self.factor)
        return fit_pixels(height, width, self.factor, *self._bounds(visual))

    def _bounds(self, visual: Visual) -> tuple[int, int]:
        """(least, most) pixels of an image; one given bound moves the other out of its way."""
        size = self.image_processor.size
        return _bounded(size["shortest_edge"], size["longest_edge"], visual)

    def _image_pixels(self, visual: Visual) -> Any:
        image = open_image(visual.source)
        if visual.resized_height:
            height, width = self._image_target(image.height, image.width, visual)
            image = image.resize((width, height), self.image_processor.resample)
            return self.image_processor([image], do_resize=False, return_tensors="pt")
        least, most = self._bounds(visual)
        size = {"shortest_edge": least, "longest_edge": most}
        return self.image_processor([image], size=size, return_tensors="pt")

    def _video_pixels(self, visual: Visual) -> "torch.Tensor":
        """Patches of frames -> (T / 2 x patches of a frame, values of a patch)."""
        processor = self.image_processor
        height, width = self._frame_target(clip_of(visual), visual)
        frames = [f.resize((width, height), processor.resample) for f in open_frames(visual)]
        slots = processor.temporal_patch_size
        frames += [frames[-1]] * (-len(frames) % slots)
        made = processor(frames, do_resize=False, return_tensors="pt")["pixel_values"]
        area = processor.patch_size**2
        # each frame fills all its slots: (slices, slot of the frame, patches, C, slots, area)
        split = made.view(len(frames) // slots, slots, -1, made.shape[-1] // slots // area, slots,
                          area)  # fmt: skip
        chosen = split.diagonal(dim1=1, dim2=4)  # (slices, patches, C, area, slots)
        return chosen.movedim(-1, 3).reshape(-1, made.shape[-1])

    def _frame_target(self, clip: Clip, visual: Visual) -> tuple[int, int]:
        if visual.resized_height and visual.resized_width:
            return on_grid(visual.resized_height, visual.resized_width, self.factor)
        least, most = _bounded(*self._frame_bounds(clip), visual)
        return fit_pixels(clip.height, clip.width, self.factor, least, most)

    def _frame_bounds(self, clip: Clip) -> tuple[float, float]:
        """(least, most) pixels of a frame."""
        size = self._video_settings.get("size") or {}
        cell = self.factor**2
        return (
            size.get("shortest_edge", FRAME_TOKENS[0] * cell),
            size.get("longest_edge", FRAME_TOKENS[1] * cell),
        )

    @cached_property
    def _video_settings(self) -> dict[str, Any]:
        name = "video_preprocessor_config.json"
        return settings_in(settings_text(self.path, name) or "{}", f"{self.path}: {name}")

    def _slices(self, clip: Clip) -> int:
        """Pairs of frames; an odd last one stands for two."""
        return -(-clip.frames // self.image_processor.temporal_patch_size)

    def _seconds(self, videos: Sequence[Visual]) -> Inputs:
        """What a pair of frames lasts; only Qwen2.5-VL's positions use it."""
        import torch

        if not videos or self.config.model_type != "qwen2_5_vl":
            return {}
        slots = self.image_processor.temporal_patch_size
        return {"second_per_grid_ts": torch.tensor([slots / clip_of(v).fps for v in videos])}

    @property
    def factor(self) -> int:
        """Pixels along one side of what becomes one token."""
        return self.image_processor.patch_size * self.image_processor.merge_size


class Qwen3Vision(QwenVision):
    """Qwen3-VL writes the time of each pair of frames into the prompt, as text."""

    def write(self, text: str, visuals: Sequence[Visual]) -> str:
        """<vision_start><video_pad><vision_end> -> the time of each pair of frames and one such."""
        videos = [visual for visual in visuals if visual.kind == "video"]
        start, pad, end = self.tokenizer.convert_ids_to_tokens(
            [
                self.config.vision_start_token_id,
                self.config.video_token_id,
                self.config.vision_end_token_id,
            ]
        )
        group = f"{start}{pad}{end}"
        pieces = text.split(group)
        if not videos or len(pieces) != len(videos) + 1:
            return text  # `expand` reports what is missing
        for i, video in enumerate(videos):
            times = "".join(f"<{time:.1f} seconds>{group}" for time in self._times(video))
            pieces[i] += times
        return "".join(pieces)

    def runs(self, visual: Visual) -> list[int]:
        if visual.kind == "image":
            return super().runs(visual)
        t, h, w = self.grid(visual)
        return [h * w // self.image_processor.merge_size**2] * t

    def _times(self, video: Visual) -> list[float]:
        """The middle of each pair's times, in seconds."""
        clip, slots = clip_of(video), self.image_processor.temporal_patch_size
        last = clip.frames - 1
        return [
            (first + min(first + slots - 1, last)) / 2 / clip.fps
            for first in range(0, clip.frames, slots)
        ]

    def _frame_bounds(self, clip: Clip) -> tuple[float, float]:
        """The family bounds the pixels of a whole video: an equal share for each frame."""
        least, most = super()._frame_bounds(clip)
        frames = self._slices(clip) * self.image_processor.temporal_patch_size
        return least / frames, most / frames


def _bounded(least: Any, most: Any, visual: Visual) -> tuple[Any, Any]:
    """The visual's own bounds; one that it lacks is the model's, moved out of the way."""
    low = visual.min_pixels or min(least, visual.max_pixels or least)
    high = visual.max_pixels or max(most, visual.min_pixels or most)
    return low, high
