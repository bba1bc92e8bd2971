"""Chat templates times shapes of rows: what becomes of each, and whether that is right.

The proofs render with the tokenizer alone, never with our own code.
"""

import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chat_templates import load_tokenizer

from main.dialogue.accounts import Dialogue
from main.dialogue.template import ChatTemplate
from main.errors import DataError, ModelError

Messages = list[dict[str, Any]]
_GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def _call(arguments: Any, name: str = "look_up", number: int = 1) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _tool(text: str, number: int = 1, name: str = "look_up") -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": f"call0000{number}", "name": name}


_ROME = {"city": "Rome", "days": 3}
_TWO = [_call(_ROME), _call({"city": "Oslo"}, number=2)]

SHAPES: dict[str, Messages] = {
    "plain": [_user("How far?"), _said("Ten miles.")],
    "system": [{"role": "system", "content": "Be brief."}, _user("How far?"), _said("Ten miles.")],
    "many turns": [
        _user("How far?"), _said("Ten miles."), _user("And back?"), _said("Ten as well."),
        _user("In all?"), _said("Twenty."),
    ],
    "Chinese": [_user("多远？"), _said("十里。"), _user("来回呢？"), _said("二十里。")],
    "emoji": [_user("🙂 far?"), _said("10 👨‍👩‍👧‍👦 🏳️‍🌈.")],
    "padded": [_user("  How far?\n"), _said("Ten miles."), _user("\tBack? "), _said("Ten.")],
    "padded answer": [_user("How far?"), _said("  Ten\n miles. \n")],
    "thoughts": [_user("How far?"), _said("Ten miles.", reasoning_content="Count them.")],
    "thoughts inline": [_user("How far?"), _said("<think>\nCount them.\n</think>\n\nTen miles.")],
    "thoughts in turns": [
        _user("How far?"), _said("Ten miles.", reasoning_content="Count them."),
        _user("And back?"), _said("Ten as well.", reasoning_content="The same way."),
    ],
    "call": [_user("Rome?"), _said(None, tool_calls=[_call(_ROME)]), _tool("sunny"), _said("Sun.")],
    "call last": [_user("Rome?"), _said(None, tool_calls=[_call(_ROME)])],
    "call, text": [
        _user("Rome?"), _said(None, tool_calls=[_call(json.dumps(_ROME))]), _tool("sunny"),
        _said("Sun."),
    ],
    "call, content": [
        _user("Rome?"), _said("Let me see.", tool_calls=[_call(_ROME)]), _tool("sunny"),
        _said("Sun."),
    ],
    "call, thoughts": [
        _user("Rome?"), _said(None, tool_calls=[_call(_ROME)], reasoning_content="Ask."),
        _tool("sunny"), _said("Sun."),
    ],
    "two calls": [
        _user("Both?"), _said(None, tool_calls=_TWO), _tool("sunny"), _tool("snow", 2),
        _said("Sun and snow."),
    ],
    "calls in turn": [
        _user("Both?"), _said(None, tool_calls=_TWO[:1]), _tool("sunny"),
        _said(None, tool_calls=_TWO[1:]), _tool("snow", 2), _said("Sun and snow."),
    ],
}  # fmt: skip


class Cell(NamedTuple):
    """kind: '=' each trained turn stands behind its inference prompt, 'no' refused.

    rows: texts that it took. reason: of a refusal.
    """

    kind: str
    rows: int = 0
    reason: str = ""


def template_names() -> list[str]:
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return sorted(path.stem for path in folder.glob("*.jinja"))


@functools.cache
def tokenizer_for(name: str) -> Any:
    """A tokenizer with this template, and the control tokens that part its texts."""
    tokenizer = load_tokenizer("llama3" if name.startswith("llama3") else "qwen", name)
    if name.startswith("glm4"):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"extra_special_tokens": list(_GLM)})
    return tokenizer


def cell(name: str, template: ChatTemplate, messages: Messages) -> Cell:
    """What becomes of a row."""
    (found,) = template.try_encode_rows([Dialogue(messages)])
    if isinstance(found, DataError):
        return Cell("no", reason=str(found))
    for problem in _faults(name, template, messages, found):
        return Cell("WRONG", len(found), problem)
    return Cell("=", len(found))


def matrix(names: list[str]) -> Iterator[tuple[str, dict[str, Cell]]]:
    """(template, shape -> cell); a template that cannot be trained with has one cell, ''."""
    for name in names:
        try:
            template = ChatTemplate(tokenizer_for(name))
        except ModelError as error:
            yield name, {"": Cell("no", reason=str(error))}
            continue
        yield name, {shape: cell(name, template, copy.deepcopy(m)) for shape, m in SHAPES.items()}


def _faults(name: str, template: ChatTemplate, messages: Messages, found: Any) -> Iterator[str]:
    """What is wrong with an accepted row."""
    tokenizer = template.tokenizer
    asked: list[int] = []
    for draft, encoded in found:
        places = [i for i, m in enumerate(draft.dialogue.messages) if m["role"] == "assistant"]
        turns = encoded.turns
        if draft.which == "last":
            places = places[-1:]
        elif len(turns) != len(places):
            places = [p for p in places if _is_prompt(template, messages[:p], encoded)]
        for place, (begin, end) in zip(places, turns, strict=True):
            asked.append(place)
            prompt = own_prompt(name, messages[:place])
            text = str(tokenizer.decode(encoded.input_ids[:begin]))
            if prompt is not None and text != _decoded(tokenizer, prompt):
                yield f"turn {place + 1}: {text!r} is trained, {prompt!r} is asked"
            if template.encode_prompt(messages[:place]) != encoded.input_ids[:begin]:
                yield f"turn {place + 1}: ids before it are not those of the prompt"
            trained = str(tokenizer.decode(encoded.input_ids[begin:end]))
            for said in strings_of(messages[place]):
                if not written(said, trained):
                    yield f"turn {place + 1}: {said!r} is not in {trained!r}"
    wanted = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if sorted(asked) != wanted:
        yield f"turns {asked} are trained, not {wanted}"


def _is_prompt(template: ChatTemplate, messages: Messages, encoded: Any) -> bool:
    ids = template.encode_prompt(messages)
    return any(encoded.input_ids[:begin] == ids for begin, _ in encoded.turns)


def _decoded(tokenizer: Any, text: str) -> str:
    return str(tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]))


def strings_of(message: dict[str, Any]) -> list[str]:
    """Everything that a turn says."""
    content = message.get("content") or ""
    said = [message.get("reasoning_content") or "", content]
    if "</think>" in content:
        thought, _, answer = content.removeprefix("<think>").partition("</think>")
        said = [thought, answer]
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        said += [call["function"]["name"], *(str(v) for v in arguments.values())]
    return [text.strip() for text in said if text.strip()]


def written(said: str, text: str) -> bool:
    return said in text or json.dumps(said, ensure_ascii=False)[1:-1] in text


class Spelling(NamedTuple):
    """How a template wants a message: the key of thoughts, a missing content, arguments."""

    thoughts: str = "reasoning_content"
    content: str = "absent"
    text: bool = False

    def spelt(self, message: dict[str, Any]) -> dict[str, Any]:
        message = {k: v for k, v in copy.deepcopy(message).items() if v is not None}
        for call in message.get("tool_calls") or []:
            given = call["function"]["arguments"]
            given = given if isinstance(given, str) else json.dumps(given)
            call["function"]["arguments"] = given if self.text else json.loads(given)
        thought = message.pop("reasoning_content", "")
        if thought and self.thoughts == "inline":
            said = message.get("content", "")
            message["content"] = f"<think>\n{thought}\n</think>\n\n{said}"
        elif thought:
            message[self.thoughts] = thought
        if self.content == "parts":
            return {**message, "content": [{"type": "text", "text": message.get("content", "")}]}
        return (
            message if self.content == "absent" else {"content": _MISSING[self.content], **message}
        )


_MISSING = {"empty": "", "null": None}


@functools.cache
def spelling_of(template: str) -> Spelling:
    """The first spelling that writes a call, or a plain turn where none writes calls."""
    tokenizer = tokenizer_for(template)
    thoughts = next(
        (
            key
            for key in ("reasoning_content", "reasoning", "thinking", "inline")
            if any(_writes(tokenizer, Spelling(key, c), "thoughts") for c in ("absent", "parts"))
        ),
        "reasoning_content",
    )
    spellings = [
        Spelling(thoughts, content, text)
        for text in (False, True)
        for content in ("absent", "empty", "null", "parts")
    ]
    for shape in ("call last", "plain"):
        for spelling in spellings:
            if _writes(tokenizer, spelling, shape):
                return spelling
    return Spelling(thoughts)


def _writes(tokenizer: Any, spelling: Spelling, shape: str) -> bool:
    text = _rendered(tokenizer, [spelling.spelt(m) for m in SHAPES[shape]], False)
    said = [text for message in SHAPES[shape] for text in strings_of(message)]
    return text is not None and all(written(s, text) for s in said) and "None" not in text


def own_text(template: str, messages: Messages, ask: bool = False) -> str | None:
    """The template's own rendering; None where it refuses the dialogue."""
    spelling = spelling_of(template)
    return _rendered(tokenizer_for(template), [spelling.spelt(m) for m in messages], ask)


def own_prompt(template: str, messages: Messages) -> str | None:
    return own_text(template, messages, ask=True)


def _rendered(tokenizer: Any, messages: Messages, ask: bool) -> str | None:
    try:
        return str(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        )
    except Exception:  # a template may raise anything
        return None


def lacks(name: str, messages: Messages, reason: str) -> str:
    """Why a refusal is right, found without our code; '' where it is not."""
    text = own_text(name, messages)
    if text is None:
        return "the template refuses it"
    said = [s for m in messages for s in strings_of(m)]
    missing = [s for s in said if not written(s, text)]
    if missing:
        return f"{missing[0]!r} is not in its text"
    places = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    for place in places:
        prompt = own_prompt(name, messages[:place])
        alone = own_text(name, messages[: place + 1])
        if prompt is None or alone is None or not alone.startswith(prompt.rstrip()):
            return f"turn {place + 1}: no prompt of inference is its prefix"
    if "does not end a tool call" in reason:
        return _endless(name, messages)
    return ""


def _endless(name: str, messages: Messages) -> str:
    """Whether nothing but text stands between a call and the tool's result."""
    text = own_text(name, messages) or ""
    call = next(i for i, m in enumerate(messages) if m.get("tool_calls"))
    begin = text.rindex(strings_of(messages[call])[-1])
    result = next((m["content"] for m in messages[call + 1 :] if m["role"] == "tool"), None)
    gap = text[begin : text.index(result, begin)] if result else text[begin:]
    special = [str(t) for t in tokenizer_for(name).added_tokens_decoder.values() if t.special]
    return "" if any(token in gap for token in special) else "no control token ends the call"
