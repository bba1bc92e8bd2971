"""What the table of families knows of ChatGLM; heavy imports wait until a folder asks for them."""

from pathlib import Path
from typing import Any

from main.chatglm.adapter import is_original, translate
from main.chatglm.config import STOP_NAMES as END_TOKENS
from main.chatglm.config import complete, map_config
from main.chatglm.config import load_config as config
from main.chatglm.kind import is_chatglm, is_chatglm_tokenizer
from main.chatglm.weights import load_weights as weights

__all__ = [
    "END_TOKENS",
    "adopt",
    "complete",
    "config",
    "is_chatglm",
    "is_chatglm_tokenizer",
    "is_original",
    "model_class",
    "tokenizer",
    "translate",
    "weights",
]


def adopt(given: Any, folder: Path) -> Any:
    """The original class's configuration as Glm's; one of Glm's stays as it is."""
    return map_config(given.to_dict(), folder) if given.model_type == "chatglm" else given


def model_class() -> Any:
    from transformers import GlmForCausalLM

    return GlmForCausalLM


def tokenizer(folder: Path) -> Any:
    from main.chatglm.tokenizer import load_tokenizer

    return load_tokenizer(folder)
