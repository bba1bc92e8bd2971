"""Real tokenizers and real chat templates for the loader tests."""

import copy
import functools
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from main.dialogue.template import ChatTemplate

ROOT = Path(__file__).resolve().parent.parent
_FOLDERS = {
    "qwen": "models/tokenizers/qwen",
    "llama3": "models/tokenizers/llama3",
    "smollm2": "models/SmolLM2-135M-Instruct",
}
# Control tokens of families whose vocabulary is not at hand, added to the Qwen one.
_GLM = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def trl_template(name: str) -> str:
    """A model family's own chat template, as the installed TRL ships it."""
    package = find_spec("trl")
    assert package is not None and package.origin, "TRL is not installed: pip install '.[dev]'"
    path = Path(package.origin).parent / "chat_templates" / f"{name}.jinja"
    return path.read_text(encoding="utf-8")


@functools.cache
def _load(name: str) -> Any:
    if name == "glm":
        tokenizer = copy.deepcopy(_load("qwen"))
        tokenizer.add_special_tokens({"extra_special_tokens": _GLM})
        return tokenizer
    folder = ROOT / _FOLDERS[name]
    assert folder.is_dir(), f"{folder} is missing; run: python scripts/fetch_assets.py"
    return AutoTokenizer.from_pretrained(folder)


def load_tokenizer(name: str, template: str | None = None) -> Any:
    """A tokenizer whose chat template a test may change; the vocabulary is shared."""
    tokenizer = copy.copy(_load(name))
    if template is not None:
        tokenizer.chat_template = trl_template(template)
    return tokenizer


@functools.cache
def chat(name: str, template: str | None = None, **variables: Any) -> ChatTemplate:
    """The template of a family on its vocabulary."""
    return ChatTemplate(load_tokenizer(name, template), **variables)


def trained_texts(encoded: Any, tokenizer: Any) -> list[str]:
    """The text of each trained turn."""
    return [tokenizer.decode(encoded.input_ids[a:b]) for a, b in encoded.turns]


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    """Messages of a user and an assistant who take turns."""
    head = [{"role": "system", "content": system}] if system is not None else []
    roles = ["user", "assistant"]
    return head + [{"role": roles[i % 2], "content": c} for i, c in enumerate(contents)]
