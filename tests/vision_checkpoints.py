"""Tiny random checkpoints of the real vision-language architectures, and pictures to show them."""

import copy
import functools
import json
from pathlib import Path
from typing import Any

import torch
from chat_templates import trl_template
from conftest import asset
from PIL import Image, ImageDraw
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaConfig,
    LlavaNextConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from main.dialogue.template import ChatTemplate
from main.models import load_config
from main.predictor.hf import Predictor
from main.vision import load_vision

QWEN = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
FAMILIES = (*QWEN, "llava", "llava_next")
_TEMPLATES = {
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "llava": "llava_next",
    "llava_next": "llava_next",
}
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
_WIDE = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # heads of 32


def picture(width: int = 84, height: int = 56, seed: int = 0) -> Image.Image:
    """A drawing that is different in each corner and for each seed."""
    image = Image.new("RGB", (width, height), (230, 240, 250))
    draw = ImageDraw.Draw(image)
    colour = ((60 * seed) % 256, (90 + 50 * seed) % 256, 120)
    draw.rectangle([0, 0, width // 2, height // 3], fill=colour)
    draw.ellipse([width // 2, height // 2, width - 1, height - 1], fill=(200, 30 * seed % 256, 40))
    return image


def saved(folder: Path, name: str, **size: int) -> str:
    """The path of a picture written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    picture(**size).save(folder / name)
    return str(folder / name)


class Checkpoints:
    """One checkpoint, template and predictor a family, made when first asked for.

    Loading the real vocabulary is what takes the time.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = functools.cache(lambda family: build(folder / family, family))
        self.predictor = functools.cache(lambda f: Predictor(self.path(f), device="cpu"))
        self.template = functools.cache(self._template)

    def _template(self, family: str) -> ChatTemplate:
        path, tokenizer = self.path(family), _tokenizer(family)
        return ChatTemplate(tokenizer, load_vision(path, load_config(path), tokenizer))


@functools.cache
def _vocabulary(llava: bool) -> Any:
    if not llava:
        return AutoTokenizer.from_pretrained(asset("tokenizers/qwen"))
    tokenizer = copy.deepcopy(_vocabulary(False))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", "</s>"]})
    tokenizer.eos_token = "</s>"
    return tokenizer


def _tokenizer(family: str) -> Any:
    tokenizer = copy.copy(_vocabulary(family.startswith("llava")))
    tokenizer.chat_template = trl_template(_TEMPLATES.get(family, "qwen2_5_vl"))
    return tokenizer


def build(path: Path, family: str, tied: bool = True, wide: bool = False) -> Path:
    """Write a random checkpoint of `family`, with the Qwen vocabulary and the real template.

    `wide` gives it the heads that vLLM's CPU build can run.
    """
    tokenizer = _tokenizer(family)
    text = (
        _TEXT
        | (_WIDE if wide else {})
        | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    )
    text |= {"tie_word_embeddings": tied}
    config, processor = (_llava if family.startswith("llava") else _qwen)(family, tokenizer, text)
    config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = AutoModelForImageTextToText.from_config(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:  # the default scale of 0.02 would hide images from the answer
                torch.nn.init.normal_(parameter, std=0.3 if "embed_tokens" not in name else 0.5)
        model.save_pretrained(path)
    processor.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _qwen(family: str, tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    image, video, start, end = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    ids = {
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
    }
    hidden = text["hidden_size"]
    head = hidden // text["num_attention_heads"]
    sections = [head // 4, head // 8, head // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    text = text | {"rope_parameters": rope}
    if family == "qwen2_vl":
        vision = {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": hidden,
            "num_heads": 2,
            "mlp_ratio": 2,
        }
        return Qwen2VLConfig(text_config=text, vision_config=vision, **ids), _qwen_processor(14)
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2}
    vision |= {"out_hidden_size": hidden}
    if family == "qwen2_5_vl":
        vision |= {"fullatt_block_indexes": [1], "window_size": 56}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids), _qwen_processor(14)
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64, "patch_size": 16}
    # transformers always interleaves this family's positions; vLLM is told by the checkpoint
    text |= {"head_dim": head, "rope_parameters": rope | {"mrope_interleaved": True}}
    if family == "qwen3_vl_moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **ids), _qwen_processor(16)
    return Qwen3VLConfig(text_config=text, vision_config=vision, **ids), _qwen_processor(16)


def _qwen_processor(patch: int) -> Any:
    cell = (2 * patch) ** 2
    return Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": 4 * cell, "longest_edge": 40 * cell}
    )


def _llava(family: str, tokenizer: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 7,
        "projection_dim": 16,
    }
    kwargs: dict[str, Any] = {
        "vision_config": vision,
        "text_config": text | {"model_type": "llama"},
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    if family == "llava":
        return LlavaConfig(**kwargs), CLIPImageProcessorPil(**size)
    grids = [[28, 56], [56, 28], [56, 56], [84, 28]]
    config = LlavaNextConfig(image_grid_pinpoints=grids, **kwargs)
    return config, LlavaNextImageProcessorPil(image_grid_pinpoints=grids, **size)


def question(text: str, *images: Any, **options: Any) -> dict[str, Any]:
    """A user's message: images first, then the text."""
    parts: list[dict[str, Any]] = [{"type": "image", "image": i, **options} for i in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def write_rows(path: Path, rows: list[list[dict[str, Any]]]) -> Path:
    lines = [json.dumps({"conversations": row}, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")
    return path
