"""What a chat template writes around an assistant's turn, learnt from a probe dialogue."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from main.dialogue.tokens import alternation
from main.errors import DataError, ModelError

# (messages, add_generation_prompt) -> text
Render = Callable[[list[dict[str, Any]], bool], str]

_PROBE = ("Quokka alpha", "Narwhal beta", "Quokka gamma", "Narwhal delta")
# An end token of a family whose vocabulary the tokenizer does not have.
_TAG = re.compile(r"<[|｜][^<>\s]+>|<[^<>\s]+[|｜]>")
_ARGUMENT, _RESULT = 61803398, "Ibex epsilon"  # a number has no closing quotes of its own


class Frame(NamedTuple):
    """What surrounds the assistant's turns in rendered text.

    generation: what the template writes to ask for an answer, e.g. "<|im_start|>assistant\\n".
    ends: finds the texts that end an assistant turn, e.g. "<|im_end|>".
    stop: such a text, appended where the template writes none after the final turn; else ''.
    """

    generation: str
    ends: re.Pattern[str]
    stop: str


def probe_dialogue() -> list[dict[str, Any]]:
    """Two exchanges whose texts no template contains."""
    roles = ("user", "assistant") * 2
    return [{"role": r, "content": c} for r, c in zip(roles, _PROBE, strict=True)]


def probe(
    render: Render,
    added: re.Pattern[str],
    special: re.Pattern[str],
    eos: str | None,
    tool_gap: str,
) -> Frame:
    """Learn the frame of a template.

    Args:
        render: the template.
        added: finds the texts of the tokens added to the vocabulary.
        special: finds the texts of the control tokens among them.
        eos: text of the tokenizer's end token, for templates that end a turn with nothing.
        tool_gap: of `tool_roles`.

    Raises:
        ModelError: the template does not write the turns as they stand, or nothing can end one.
    """
    text = render(probe_dialogue(), False)
    _, after = _surroundings(text, _PROBE)
    generation = _generation_prompt(render, added)
    ends = _ends(after[3], [after[1], tool_gap], special)
    stop = "" if after[3].strip() else ends[0] if ends else eos
    if stop is None:
        raise ModelError(
            "The chat template ends an assistant turn with nothing and the tokenizer has no "
            "end token, so a trained model would never stop. Set tokenizer.eos_token."
        )
    return Frame(generation, alternation([*ends, stop]), stop)


def _surroundings(text: str, contents: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What stands before and after each content."""
    pieces = re.split("|".join(map(re.escape, contents)), text)
    if len(pieces) != len(contents) + 1 or re.findall("|".join(contents), text) != list(contents):
        raise ModelError(
            "The chat template does not write every turn of a dialogue once and in order, so "
            f"assistant turns cannot be found in its text: {text[:200]!r}. Give the tokenizer "
            "another chat_template."
        )
    return pieces[:-1], pieces[1:]


def _generation_prompt(render: Render, added: re.Pattern[str]) -> str:
    """What add_generation_prompt=True adds after a user turn."""
    question = probe_dialogue()[:1]
    asked = render(question, True).rpartition(_PROBE[0])[2]
    plain = render(question, False).rpartition(_PROBE[0])[2]
    return asked[_whole(asked, _common(asked, plain), added) :]


def beginning(generation: str, gap: str, added: re.Pattern[str]) -> tuple[int, int]:
    """(where the longest beginning of the generation prompt in `gap` ends, its length)."""
    for length in range(len(generation), 0, -1):
        place = gap.rfind(generation[:length])
        if place >= 0:
            length = _whole(gap, place + length, added) - place
            length = max(0, _whole(generation, length, added))
            return place + length, length
    return 0, 0


def _whole(text: str, position: int, added: re.Pattern[str]) -> int:
    """The position, or the start of the added token that it would split."""
    for match in added.finditer(text):
        if match.start() < position < match.end():
            return match.start()
    return position


def _common(one: str, other: str) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _ends(final: str, gaps: list[str], special: re.Pattern[str]) -> list[str]:
    """Texts that end a turn: after the final one, and where another turn follows, if different."""
    ends = final.split()[:1]
    for gap in gaps:
        found = special.search(gap) or _TAG.search(gap)
        if found and not any(end in gap for end in ends):
            ends.append(found.group())
    return ends


def tool_roles(render: Render) -> tuple[dict[str, str], str]:
    """(roles to translate, what stands between a tool call and the tool's result)."""
    gaps = {role: _tool_gap(render, role) for role in ("tool", "observation")}
    known = [role for role, gap in gaps.items() if gap]
    roles = {role: known[0] for role in gaps if known and role not in known}
    return roles, gaps[known[0]] if known else ""


def _tool_gap(render: Render, role: str) -> str:
    """What stands between an assistant turn and the tool's result; '' when either is not written.

    Tried with a structured call first, then with a turn of text.
    """
    function = {"name": "call_ibex", "arguments": {"of": _ARGUMENT}}
    call = {"id": "ibexcall1", "type": "function", "function": function}
    turns: list[tuple[dict[str, Any], str]] = [
        ({"content": "", "tool_calls": [call]}, str(_ARGUMENT)),
        ({"content": _PROBE[1]}, _PROBE[1]),
    ]
    for turn, landmark in turns:
        dialogue = probe_dialogue()
        dialogue[1] = {"role": "assistant", **turn}
        dialogue[2] = {"role": role, "content": _RESULT, "tool_call_id": "ibexcall1"}
        try:
            text = render(dialogue, False).partition(landmark)[2]
        except DataError:
            continue
        gap, found, _ = text.partition(_RESULT)
        if found:
            return gap
    return ""
