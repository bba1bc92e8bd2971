"""Which models take images, and what handles theirs."""

import os
from typing import Any

from main.system.settings import settings_in
from main.vision.processor import VisionProcessor, settings_text

SUPPORTED = {
    "qwen2_vl": "main.vision.qwen.QwenVision",
    "qwen2_5_vl": "main.vision.qwen.QwenVision",
    "qwen3_vl": "main.vision.qwen.Qwen3Vision",
    "qwen3_vl_moe": "main.vision.qwen.Qwen3Vision",
    "llava": "main.vision.llava.LlavaVision",
    "llava_next": "main.vision.llava.LlavaNextVision",
}


def load_vision(
    path: str | os.PathLike[str], config: Any, tokenizer: Any
) -> VisionProcessor | None:
    """What makes pixels and placeholder tokens for this model; None for one that takes no images.

    A chat template that stands beside the tokenizer instead of in it (chat_template.json) is
    given to the tokenizer.
    """
    name = SUPPORTED.get(getattr(config, "model_type", ""))
    if name is None:
        return None
    from importlib import import_module

    if not tokenizer.chat_template:
        name = "chat_template.json"
        found = settings_in(settings_text(str(path), name) or "{}", f"{path}: {name}")
        tokenizer.chat_template = found.get("chat_template")
    module, _, cls = name.rpartition(".")
    return getattr(import_module(module), cls)(str(path), config, tokenizer)
