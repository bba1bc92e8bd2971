"""Regular expressions of an adapter's configuration: one may try for years, and nothing stops it.

So those of strangers are matched in a process of its own first, with a limit of time.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from main.errors import ModelError

SECONDS = 20  # that matching may take; of released adapters none takes a tenth of one
_NAME = re.compile(r"[\w.]+")  # matches itself and little else, at once
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for name in names:
        re.fullmatch(pattern, name), re.match(rf"(.*\\.)?({pattern})$", name)
"""


def check_patterns(config: Any, model: Any, folder: Path) -> None:
    """Of an adapter, as peft matches them with the names of a model's modules.

    Raises:
        ModelError: one that takes too long, or is no regular expression.
    """
    patterns = [text for text in _patterns(config) if not _NAME.fullmatch(text)]
    if not patterns or not sys.executable or getattr(sys, "frozen", False):
        return
    names = [name for name, _ in model.named_modules()]
    problem = _problem(json.dumps([patterns, names]))
    if problem:
        shown = max(patterns, key=len)[:80]
        raise ModelError(
            f"adapter '{folder}' chooses its layers by {shown!r}, which {problem}. Take the "
            "pattern of the adapter's original, or names of layers."
        )


def _patterns(config: Any) -> Iterator[str]:
    for name in ("target_modules", "exclude_modules", "layers_pattern"):
        value = getattr(config, name, None)
        if isinstance(value, str):
            yield value
    for name in ("rank_pattern", "alpha_pattern"):
        yield from map(str, getattr(config, name, None) or {})


def _problem(asked: str) -> str:
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        done = subprocess.run(command, input=asked, text=True, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"takes more than {SECONDS} s to match"
    except OSError:  # no process can be started here
        return ""
    said = done.stderr.strip().splitlines()
    return (
        f"is no regular expression ({said[-1] if said else 'no match'})" if done.returncode else ""
    )
