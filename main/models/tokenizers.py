"""The tokenizer of a model."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from main.errors import ModelError
from main.models.families import original_tokenizer_of
from main.models.folder import clear_errors, has_any, local_folder, nothing_found
from main.models.growth import check_growth

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken")
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>")
SPARE_TOKEN = re.compile(r"reserved|unused|extra_0")


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    """Whether an adapter brings a tokenizer: it, and its chat template, are what was trained."""
    return (Path(folder) / "tokenizer_config.json").is_file()


def load_tokenizer(
    path: str | os.PathLike[str], *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder (or hub name), fast, with a pad token of its own vocabulary.

    Raises:
        MissingFileError: the folder, or every tokenizer file in it, is missing.
        ModelError: only a slow (pure Python) tokenizer exists: it has no offset mapping, which
            the label spans of training need; or it makes texts longer without bound.
    """
    from transformers import AutoTokenizer

    folder = local_folder(path)
    original = original_tokenizer_of(folder)
    if folder and original:
        return original.tokenizer(folder)
    if folder and not has_any(folder, TOKENIZER_FILES) and not trust_remote_code:
        raise nothing_found("tokenizer", folder, TOKENIZER_FILES)
    if folder:
        check_growth(folder)
    with clear_errors("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer '{path}' exists only as the slow class {type(tokenizer).__name__}, which "
            "reports no character offsets. Convert it to a tokenizer.json (the `tokenizers` "
            "library) and save it there."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def _spare_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A special token that no text contains, else eos; the vocabulary never grows."""
    specials = [
        str(token)
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and str(token) not in (tokenizer.eos_token, tokenizer.bos_token)
    ]
    named = [name for name in PAD_TOKENS if name in specials]
    spare = [name for name in specials if SPARE_TOKEN.search(name)]
    for name in [*named, *spare, tokenizer.eos_token]:
        if name is not None:
            return name
    raise ModelError(
        f"tokenizer '{tokenizer.name_or_path}' has neither a pad token nor an end token. "
        "Set `tokenizer.pad_token` to one of its tokens and save it."
    )
