"""Base models, tokenizers and model families, and LoRA adapters on them."""

from main.models.adapter_files import read_adapter
from main.models.adapters import add_adapter, load_adapter, save_adapter
from main.models.families import context_length, family
from main.models.load import default_device, dtype_name, load_config, load_model
from main.models.lora import LoraOptions
from main.models.tokenizers import has_tokenizer, load_tokenizer

__all__ = [
    "LoraOptions",
    "add_adapter",
    "context_length",
    "default_device",
    "dtype_name",
    "family",
    "has_tokenizer",
    "load_adapter",
    "load_config",
    "load_model",
    "load_tokenizer",
    "read_adapter",
    "save_adapter",
]
