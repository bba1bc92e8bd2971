"""Images and short videos of a dialogue: where they are, how large they become, their tokens."""

from main.vision.load import SUPPORTED, load_vision
from main.vision.media import (
    VISUAL_TYPES,
    Visual,
    is_visual,
    locate_sources,
    locate_visuals,
    part_problem,
    template_message,
    visuals_in,
)
from main.vision.processor import Placed, VisionProcessor

__all__ = [
    "SUPPORTED",
    "VISUAL_TYPES",
    "Placed",
    "VisionProcessor",
    "Visual",
    "is_visual",
    "load_vision",
    "locate_sources",
    "locate_visuals",
    "part_problem",
    "template_message",
    "visuals_in",
]
