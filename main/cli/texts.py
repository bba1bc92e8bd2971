"""What the docstring of an options' dataclass says of each field.

lora_r, lora_alpha, lora_dropout: rank, scale (alpha / r), dropout before the adapter.
peft_path (also resume_path): folder of an adapter to put on it.
"""

import dataclasses
import inspect
import re
from typing import NamedTuple

_ENTRY = re.compile(r"^(\w+(?: \([\w ]+\))?(?:, \w+(?: \([\w ]+\))?)*): (.*)$")
LONG = 160  # a text for several names that is longer stands at the first of them alone


class Entry(NamedTuple):
    """One paragraph: the names before its colon, and what follows, on one line."""

    names: list[str]
    text: str


def summary(kind: type) -> str:
    """The first sentence of a class's docstring."""
    first = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.split())


def entries(kind: type) -> list[Entry]:
    """The paragraphs on fields, of this class's docstring alone."""
    found: list[Entry] = []
    for line in inspect.cleandoc(kind.__doc__ or "").splitlines():
        match = _ENTRY.match(line)
        if match:
            names = re.findall(r"\w+", re.sub(r" \([^)]*\)", "", match[1]))
            found.append(Entry(names, match[2]))
        elif found and line.startswith("    "):
            names, text = found[-1]
            found[-1] = Entry(names, f"{text} {line.strip()}")
        elif line and found:
            found.append(Entry([], ""))  # what follows belongs to no field
    return [entry for entry in found if entry.names]


def help_of(kind: type, name: str) -> str:
    """What is said of a field, by the nearest class that says it; '' where nobody does."""
    bases = [base for base in kind.__mro__ if dataclasses.is_dataclass(base)]
    every = [entry for base in bases for entry in entries(base)]
    for entry in every:
        if name in entry.names:
            first = entry.names[0]
            shared = name != first and len(entry.text) > LONG
            return f"see --{first}" if shared else entry.text
    for entry in every:
        if re.search(rf"\b{name}\b", entry.text):
            return f"see --{entry.names[0]}"
    return ""
