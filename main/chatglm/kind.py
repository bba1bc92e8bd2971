"""Which of the three formats a folder holds, told from its files without running any."""

import json
from pathlib import Path
from typing import Literal

from main.errors import ModelError
from main.system.settings import read_settings

Kind = Literal["chatglm2", "chatglm3", "glm4"]

TOKENIZER_CLASS = "ChatGLMTokenizer"  # of ChatGLM2 and 3, in the original folders and in ours
GLM4_CLASS = "ChatGLM4Tokenizer"


def is_chatglm(folder: Path) -> bool:
    """Whether the folder is an original checkpoint, which declares code of its own."""
    config = read_settings(folder / "config.json")
    code = str(config.get("auto_map") or "")
    return config.get("model_type") == "chatglm" or "configuration_chatglm" in code


def is_chatglm_tokenizer(folder: Path) -> bool:
    """Whether the folder's tokenizer is an original one, or ChatGLM2's or 3's as saved here."""
    config = read_settings(folder / "tokenizer_config.json")
    return config.get("tokenizer_class") in (TOKENIZER_CLASS, GLM4_CLASS) or is_chatglm(folder)


def kind_of(folder: Path) -> Kind:
    """The format of an original folder.

    ChatGLM2 and ChatGLM3 share their vocabulary and the names of their classes. They are told
    apart by the role tokens in what describes the tokenizer, then by the names that the folder
    gives itself, then by its own name.

    Raises:
        ModelError: ChatGLM-6B, or nothing tells ChatGLM2 from ChatGLM3.
    """
    config = read_settings(folder / "config.json")
    if "position_encoding_2d" in config or (folder / "ice_text.model").is_file():
        raise ModelError(
            f"'{folder}' is ChatGLM-6B, the first generation, whose layers and vocabulary differ "
            "from those of all later ones. Use ChatGLM2, ChatGLM3 or GLM-4."
        )
    tokenizer = read_settings(folder / "tokenizer_config.json")
    if tokenizer.get("tokenizer_class") == GLM4_CLASS:
        return "glm4"
    code = folder / "tokenization_chatglm.py"
    if code.is_file():
        text = code.read_text(encoding="utf-8", errors="replace")
        return "chatglm3" if "<|observation|>" in text else "chatglm2"
    if "<|observation|>" in json.dumps(tokenizer, ensure_ascii=False):
        return "chatglm3"
    names = (config.get("_name_or_path"), tokenizer.get("name_or_path"), folder.resolve().name)
    for name in names:
        for kind in ("chatglm2", "chatglm3"):
            if kind in str(name).lower():
                return kind  # type: ignore[return-value]
    raise ModelError(
        f"'{folder}' may be ChatGLM2 or ChatGLM3, which write dialogues differently, and nothing "
        "in it tells which. Put tokenization_chatglm.py of the original into it (it is read, not "
        "run), or name the folder chatglm2-6b or chatglm3-6b."
    )
