"""A row of any of our formats as the checks see it: what is asked, and what may be answered."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from main.dialogue.messages import SYSTEM_ROLES
from main.loaders.format import Format, Row
from main.loaders.preference import listed


class Example(NamedTuple):
    """One row.

    place: where it stands.
    system: its system text, '' where it has none.
    asked: the texts of all turns before the last answer, without the system's.
    said: those of them that are not the assistant's.
    answers: what is learnt: answers of the assistant, gold answers, a target.
    rejected: what is learnt to avoid.
    label: of a single answer, whether it is good.
    """

    split: str
    place: str
    system: str
    asked: tuple[str, ...]
    said: tuple[str, ...]
    answers: tuple[str, ...]
    rejected: tuple[str, ...] = ()
    label: bool | None = None

    @property
    def question(self) -> str:
        return "\n".join(self.asked)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.system, *self.asked, *self.answers, *self.rejected)))


def example_of(row: Row, form: Format, split: str, place: str) -> Example:
    """A row that the format finds sound."""
    if form.name == "pure":
        return Example(split, place, "", (row["context"],), (row["context"],), (row["target"],))
    prompt = next(row[name] for name in ("conversations", "prompt") if name in row)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    turns = [(message["role"], _text(message.get("content"))) for message in prompt]
    system = str(row.get("system") or "")
    system = system or "".join(text for role, text in turns[:1] if role in SYSTEM_ROLES)
    dialogue = [(role, text) for role, text in turns if role not in SYSTEM_ROLES]
    answers, rejected, label = _answers(row, form, dialogue)
    if form.name == "chat":
        dialogue = dialogue[:-1]
    asked = tuple(text for _, text in dialogue)
    said = tuple(text for role, text in dialogue if role != "assistant")
    return Example(split, place, system, asked, said, answers, rejected, label)


def _answers(
    row: Row, form: Format, dialogue: list[tuple[str, str]]
) -> tuple[tuple[str, ...], tuple[str, ...], bool | None]:
    if "gold_answers" in row:
        return tuple(listed(row["gold_answers"])), tuple(listed(row["bad_answers"])), None
    if form.name == "unpaired":
        return (str(row["answer"] if "answer" in row else row["completion"]),), (), row["label"]
    if form.name == "grpo":
        gold = row.get("answer", row.get("anwer"))
        return ((gold,) if isinstance(gold, str) else ()), (), None
    return tuple(text for role, text in dialogue if role == "assistant"), (), None


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(p.get("text") or "") for p in parts if isinstance(p, Mapping))
