"""One spelling of a message: what rows and calls spell in several ways is made alike here.

Arguments of a call as an object or as JSON text, thoughts as a key or as <think> in the content,
keys that are null: templates see what they expect, however the row says it.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from main.dialogue.links import arguments_of, in_order_of_calls
from main.vision.media import VISUAL_TYPES

THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")
OPEN, CLOSE = "<think>", "</think>"
# What stands around thoughts that come under a key of their own.
AROUND = (f"{OPEN}\n", f"\n{CLOSE}\n\n")
_INLINE = re.compile(rf"(\s*(?:{OPEN})?\s*)(.*?)(\s*{CLOSE}\s*)(.*)", re.DOTALL)
_OWN = ("content", "tool_calls", "around", "links", *THOUGHT_KEYS)


def normal(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages in one spelling; those given are not changed, and a second time changes nothing.

    A message has a role and, where they say something, `content` (text, or parts without null
    keys), `reasoning_content` with `around` (what stands before and after it in the content),
    `tool_calls` (`function.arguments` an object), `name` and ids. Results of parallel calls
    come in the order of the calls.
    """
    return in_order_of_calls([_normal(message) for message in messages])


def _normal(given: Mapping[str, Any]) -> dict[str, Any]:
    message = {k: v for k, v in given.items() if v is not None and k not in _OWN}
    content = given.get("content")
    thought = next((given[key] for key in THOUGHT_KEYS if given.get(key)), "")
    around = given.get("around", AROUND)
    if isinstance(content, list):
        content = [_part(part) for part in content]
    if given.get("role") == "assistant" and not thought:
        content, thought, around = _split(content)
    if thought:
        message["reasoning_content"], message["around"] = thought, around
    if content is not None:
        message["content"] = content
    if given.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in given["tool_calls"]]
    return message


def _part(part: Any) -> Any:
    """A part without its null keys; text under a name of another API's."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        return part
    kept = {key: value for key, value in part.items() if value is not None}
    if kept.get("type") in ("input_text", "output_text"):
        kept["type"] = "text"
    return kept


def _split(content: Any) -> tuple[Any, str, tuple[str, str]]:
    """(content, thought, around) of an assistant's content that may begin with its thoughts."""
    text = content
    if isinstance(content, list) and all(p.get("type") == "text" for p in content):
        text = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(text, str) or CLOSE not in text:
        return content, "", AROUND
    found = _INLINE.fullmatch(text)
    if found is None or not found[2] or OPEN in found[2]:
        return content, "", AROUND
    return found[4], found[2], (found[1], found[3])


def _call(given: Mapping[str, Any]) -> dict[str, Any]:
    function = given.get("function") or {k: given[k] for k in ("name", "arguments") if k in given}
    function = {**function, "arguments": arguments_of(function)}
    call = {"type": "function", **{k: v for k, v in given.items() if v is not None}}
    call = {k: v for k, v in call.items() if k not in ("name", "arguments")}
    return {**call, "function": function}


def texts_of(content: Any) -> list[str]:
    """The text of a content, or its pieces where images stand between them."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    if any(part.get("type") in VISUAL_TYPES for part in content):
        return [part["text"] for part in content if isinstance(part.get("text"), str)]
    return ["".join(str(part.get("text", "")) for part in content)]
