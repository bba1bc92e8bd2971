"""Data sets by name, their row formats, and what becomes of a row: token ids and loss masks."""

from main.loaders.cache import load_dataset_split
from main.loaders.files import read_rows, row_word
from main.loaders.registry import LOADERS, get_loader, resolve
from main.loaders.template import ChatTemplate, get_template

__all__ = [
    "LOADERS",
    "ChatTemplate",
    "get_loader",
    "get_template",
    "load_dataset_split",
    "read_rows",
    "resolve",
    "row_word",
]
