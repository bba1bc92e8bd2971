"""Names -> things: data sets by the name in present.json, row formats by `loader_name`."""

import datetime
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.dialogue.plain import PlainText
from main.dialogue.template import ChatTemplate, TrainTurns
from main.errors import ConfigError, DataError, MissingFileError
from main.loaders import chat, grpo, kto, preference, pure
from main.loaders.files import read_json
from main.loaders.format import Format
from main.options import nearest
from main.vision import VisionProcessor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPLITS = ("train", "dev", "test")

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

_EXAMPLE = '{"my_data": {"train": "./data/train.json", "dev": "./data/dev.json"}}'


def get_loader(name: str) -> Format:
    """The row format called `loader_name` in the trainers.

    Raises:
        ConfigError: unknown, with the nearest known name.
    """
    if name in LOADERS:
        return LOADERS[name]
    raise ConfigError(
        f"loader_name={name!r} is unknown.{nearest(str(name), LOADERS)} "
        f"Known: {', '.join(LOADERS)}."
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


def resolve(
    data_path: str | Path | Mapping[str, str | Path],
    data_present_path: str | Path = "./data/present.json",
) -> dict[str, Path]:
    """The files of a data set, by split ('train', 'dev', 'test').

    Args:
        data_path: a name in the registry, or the mapping split -> file itself, or one file
            (which is then 'train').
        data_present_path: the registry, a JSON object name -> {split: file}. Relative files are
            looked for from the working directory, then from the registry's folder.

    Raises:
        ConfigError: an unknown name (the nearest known one is offered) or split.
        DataError: a registry that is not such an object.
        MissingFileError: the registry or a file does not exist.
    """
    folder = Path(data_present_path).parent
    if isinstance(data_path, Mapping):
        return _files(data_path, "data_path", folder)
    registry = _read_registry(Path(data_present_path))
    if registry is not None and str(data_path) in registry:
        return _files(registry[str(data_path)], f"{data_present_path}: '{data_path}'", folder)
    if os.path.isfile(data_path):
        return {"train": Path(data_path)}
    raise _unknown(str(data_path), registry, data_present_path)


def _read_registry(path: Path) -> dict[str, Any] | None:
    if not os.path.exists(path):
        return None
    registry = read_json(path)
    if not isinstance(registry, dict):
        raise DataError(f"{path} must be an object such as {_EXAMPLE}.")
    return registry


def _unknown(name: str, registry: dict[str, Any] | None, present: str | Path) -> Exception:
    if Path(name).suffix in (".json", ".jsonl") or "/" in name:
        return MissingFileError(f"data_path={name!r} does not exist (looked from {Path.cwd()}).")
    if registry is None:
        return MissingFileError(
            f"data_path={name!r} is looked up in {present}, which does not exist. Write it, for "
            f"example {_EXAMPLE}, or name it with data_present_path."
        )
    known = ", ".join(registry) or "(none)"
    return ConfigError(
        f"data_path={name!r} is not in {present}.{nearest(name, registry)} Known: {known}."
    )


def _files(entry: Any, where: str, folder: Path) -> dict[str, Path]:
    if not isinstance(entry, Mapping) or not entry:
        raise DataError(f"{where} must map splits to files, such as {{'train': 'train.json'}}.")
    for split, file in entry.items():
        if split not in SPLITS:
            raise ConfigError(
                f"{where} has the unknown split {split!r}; allowed: {', '.join(SPLITS)}."
                f"{nearest(str(split), SPLITS)}"
            )
        if not isinstance(file, str | Path):
            raise DataError(f"{where}, '{split}' must be a path; found {file!r}.")
    return {split: _find(Path(file), split, where, folder) for split, file in entry.items()}


def _find(file: Path, split: str, where: str, folder: Path) -> Path:
    for place in dict.fromkeys((file, folder / file)):
        if os.path.isfile(place):
            return place
    raise MissingFileError(
        f"{where}, '{split}': {file} does not exist, neither from {Path.cwd()} nor from "
        f"{folder.resolve()}."
    )
