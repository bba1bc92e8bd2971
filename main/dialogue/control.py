"""Control tokens in what others wrote: they would forge or end a turn.

Training refuses them; a prompt of inference reads them as the characters that they consist of.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from main.dialogue.marks import forms
from main.vision import template_message

if TYPE_CHECKING:
    from main.dialogue.accounts import Account


def control_problem(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    control: re.Pattern[str],
) -> str:
    """One sentence when a text contains a control token, else ''."""
    for index, message in enumerate(messages):
        found = control.search(_everything(message))
        if found:
            where = f"turn {index + 1} ({message['role']})"
            return f"{where} contains the control token {_advice(found.group())}"
    found = control.search(json.dumps(tools, ensure_ascii=False)) if tools else None
    return f"'tools' contains the control token {_advice(found.group())}" if found else ""


def forged(
    account: "Account", tools: Sequence[Mapping[str, Any]] | None, control: re.Pattern[str]
) -> list[int]:
    """Places of the text that part every control token which is not the template's own.

    What the assistant said is the model's own text, and is read as it was written.
    """
    text, messages = account.text, account.messages
    spans = [
        (piece.start, piece.end)
        for piece in account.pieces
        if messages[account.texts[piece.number].turn]["role"] != "assistant"
    ]
    spans += [
        span for word in _strings(tools) if control.search(word) for span in _find(word, text)
    ]
    return sorted({m.start() + 1 for a, b in spans for m in control.finditer(text, a, b)})


def _strings(value: Any) -> Iterator[str]:
    """Every text in JSON, the names of its fields among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _find(word: str, text: str) -> Iterator[tuple[int, int]]:
    for form in dict.fromkeys(forms(word)):
        for match in re.finditer(re.escape(form), text):
            yield match.span()


def _advice(token: str) -> str:
    return f"{token!r} as text, which the tokenizer would read as a real one; remove or rewrite it."


def _everything(message: Mapping[str, Any]) -> str:
    if set(message) <= {"role", "content"} and isinstance(message["content"], str):
        return message["content"]
    shown = template_message(message)  # without the sources of images
    return json.dumps([v for k, v in shown.items() if k != "role"], ensure_ascii=False)
