"""How much longer a tokenizer may make a text: replacements one after the other multiply.

What a tokenizer.json says is done by a library that nothing interrupts, so it is looked at first.
"""

import os
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from main.errors import ModelError
from main.system.settings import read_settings

MOST = 100  # times that a text may grow; of released tokenizers none reaches 10
STEPS = ("normalizer", "decoder")  # what rewrites text; the rest cuts it


def check_growth(folder: Path) -> None:
    """Of the tokenizer.json in a folder, if there is one.

    Raises:
        ModelError: it makes texts longer without bound, or is no JSON.
    """
    file = folder / "tokenizer.json"
    if file.is_file():
        state = os.stat(file)
        _check(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=32)
def _check(file: Path, changed: int, size: int) -> None:
    try:
        content = read_settings(file)
        found = {name: _growth(content.get(name)) for name in STEPS}
    except (KeyError, AttributeError, TypeError, RecursionError) as error:
        raise ModelError(f"{file} is no tokenizer's: {error}") from error
    for name, growth in found.items():
        if growth > MOST:
            raise ModelError(
                f"{file}: its {name} may make a text {growth:.3g} times as long, and {MOST} times "
                "are the most. Take that file from the original model."
            )


def _growth(step: dict[str, Any] | None) -> float:
    """The most that a step multiplies the length of a text by."""
    if not step:
        return 1.0
    inner = step.get("normalizers") or step.get("decoders")
    if inner:
        return prod(min(_growth(one), 1e30) for one in inner)
    if step.get("type") != "Replace":
        return 1.0
    pattern, content = step["pattern"], len(step["content"])
    text = pattern.get("String")
    return max(1.0, content / len(text)) if text else 1.0 + content  # a pattern may match nothing
