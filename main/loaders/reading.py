"""What looking at rows begins with: where they are, what reads them, and how they are encoded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError
from main.loaders.places import resolve
from main.loaders.recognise import recognise
from main.loaders.registry import get_loader, get_template
from main.loaders.shapes import AUTO
from main.loaders.sources import Source

# That rows of any kind are read with, where several could.
_USUAL = ("LLM_Chat", "LLM_Pure", "LLM_DPO", "LLM_KTO", "LLM_GRPO")


class Reading(NamedTuple):
    """sources: by split. template: None where there is no tokenizer."""

    sources: dict[str, Source]
    loader: str
    template: Any


def reading(
    data_path: Any,
    loader_name: str = AUTO,
    from_pretrained: str | Path | None = None,
    tokenizer: Any = None,
    data_present_path: str | Path = "./data/present.json",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Reading:
    """See `main.loaders.check` for the arguments, and what is raised."""
    if loader_name != AUTO:
        get_loader(loader_name)
    sources = resolve(data_path, data_present_path)
    if loader_name == AUTO:
        loader_name, sources = recognise(sources, _USUAL, "main.loaders")
    if tokenizer is None and from_pretrained is not None:
        from main.models import load_tokenizer

        tokenizer = load_tokenizer(Path(from_pretrained).expanduser())
    if tokenizer is None and template_kwargs:
        raise ConfigError("template_kwargs changes nothing without a tokenizer: leave it out.")
    template = tokenizer and get_template(tokenizer, loader_name, **(template_kwargs or {}))
    return Reading(sources, loader_name, template)
