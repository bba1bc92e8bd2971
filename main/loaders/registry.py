"""Row formats and their templates, by `loader_name`."""

import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from main.dialogue.plain import PlainText
from main.dialogue.template import ChatTemplate, TrainTurns
from main.errors import ConfigError
from main.loaders import chat, grpo, kto, preference, pure
from main.loaders.format import Format
from main.loaders.shapes import AUTO
from main.options import nearest
from main.vision import VisionProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The ChatGLM names stand for the same rows; what differs is the template. Where a row could be read
# in several formats, the later one reads it.
LOADERS: dict[str, Format] = {
    "LLM_Pure": pure.FORMAT,
    "ChatGLM_LoRA": pure.FORMAT,
    "LLM_GRPO": grpo.FORMAT,
    "LLM_Chat": chat.FORMAT,
    "ChatGLM_Chat": chat.FORMAT,
    "LLM_DPO": preference.PAIRS,
    "LLM_RLHF": preference.REWARDED,
    "LLM_KTO": kto.FORMAT,
}

OWN_LOADERS = frozenset(LOADERS)  # beside what is registered from outside


def get_loader(name: str) -> Format:
    """The row format called `loader_name` in the trainers.

    Raises:
        ConfigError: unknown, with the nearest known name.
    """
    if name in LOADERS:
        return LOADERS[name]
    raise ConfigError(
        f"loader_name={name!r} is unknown.{nearest(str(name), LOADERS)} "
        f"Known: {', '.join(LOADERS)}; for trainers also '{AUTO}', which reads rows of others."
    )


def register(name: str, form: Format) -> None:
    """Make a row format known as `loader_name=name`, to trainers and to batch inference.

    A trainer takes it where its encoded rows have the columns of a format that the trainer takes.

    Raises:
        ConfigError: the name is taken by another format.
    """
    if LOADERS.get(name, form) != form:
        raise ConfigError(f"loader_name={name!r} is taken; register the format under another name.")
    LOADERS[name] = form


def find_format(row: Mapping[str, Any]) -> Format | None:
    """The format whose marks fit the row best; None where none does."""
    fitting = [
        (len(mark), place, form)
        for place, form in enumerate(LOADERS.values())
        for mark in form.marks
        if all(field in row for field in mark)
    ]
    return max(fitting, key=lambda found: found[:2])[2] if fitting else None


def get_template(
    tokenizer: "PreTrainedTokenizerBase",
    loader_name: str,
    vision: VisionProcessor | None = None,
    train_turns: TrainTurns = "all",
    today: datetime.date | None = None,
    **template_kwargs: Any,
) -> ChatTemplate | PlainText:
    """What turns rows of this loader into ids.

    Args:
        vision: of a model that takes images.
        train_turns, today: see `ChatTemplate`.
        template_kwargs: variables of the chat template.

    Raises:
        ModelError: as `ChatTemplate`; LLM_Pure (ChatGLM_LoRA) needs no chat template.
        ConfigError: an unknown loader, or template variables for rows that use none.
    """
    kind = get_loader(loader_name).template
    if kind == "chat" or (kind == "either" and tokenizer.chat_template):
        return ChatTemplate(tokenizer, vision, train_turns, today, **template_kwargs)
    if template_kwargs:
        raise ConfigError(
            f"loader_name='{loader_name}' uses no chat template, so it cannot take "
            f"{sorted(template_kwargs)}; leave them out."
        )
    return PlainText(tokenizer)
