"""Data sets by name, their row formats, and what becomes of a row: token ids and loss masks."""

from main.dialogue.template import ChatTemplate
from main.loaders.cache import load_dataset_split
from main.loaders.doctor import Checkup, Finding, check
from main.loaders.files import read_rows, row_word
from main.loaders.format import Format, Question
from main.loaders.places import resolve
from main.loaders.preview import Preview, preview
from main.loaders.registry import (
    LOADERS,
    OWN_LOADERS,
    get_loader,
    get_template,
    register,
)

__all__ = [
    "LOADERS",
    "OWN_LOADERS",
    "ChatTemplate",
    "Checkup",
    "Finding",
    "Format",
    "Preview",
    "Question",
    "check",
    "get_loader",
    "get_template",
    "load_dataset_split",
    "preview",
    "read_rows",
    "register",
    "resolve",
    "row_word",
]
