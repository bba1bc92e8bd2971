"""What is special about a family of models, one table for all of it; the rest is transformers'.

    register(Family("Mine", ("mine",), end_tokens=("<|turn|>",)))

A family whose checkpoints come in a form that transformers does not read brings functions that
read it (`Original`); loading, tokenizers, adapters and servers ask the table and name no family.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main.chatglm import original as chatglm
from main.errors import ConfigError


@dataclass(frozen=True)
class Original:
    """How checkpoints in a family's own form are read as one of transformers' models.

    is_model, is_tokenizer: (folder) -> whether it holds such a model, such a tokenizer.
    config: (folder) -> the configuration of transformers' class.
    adopt: (configuration given by the caller, folder) -> the same for transformers' class.
    weights: (folder, configuration) -> tensors by the names of transformers' class.
    model_class: () -> that class.
    complete: (loaded model, folder) puts in place what weights and configuration do not bring.
    tokenizer: (folder) -> a fast tokenizer.
    is_adapter: (tensors of an adapter) -> whether they name the layers of the original code.
    adapter: (peft's configuration, tensors, the model's configuration) -> both, translated.
    convert: the command that writes transformers' form, for servers that read nothing else.
    """

    is_model: Callable[[Path], bool]
    is_tokenizer: Callable[[Path], bool]
    config: Callable[[Path], Any]
    adopt: Callable[[Any, Path], Any]
    weights: Callable[[Path, Any], dict[str, Any]]
    model_class: Callable[[], Any]
    complete: Callable[[Any, Path], None]
    tokenizer: Callable[[Path], Any]
    is_adapter: Callable[[dict[str, Any]], bool]
    adapter: Callable[[Any, dict[str, Any], Any], tuple[Any, dict[str, Any]]]
    convert: str


@dataclass(frozen=True)
class Family:
    """One line of the table.

    name: what checkpoints are called, `<name>_<step>`.
    model_types: beginnings of the configuration's `model_type`.
    end_tokens: special tokens that end an answer beside those that the generation configuration
        and the chat template show; those that a tokenizer lacks are passed over.
    original: how checkpoints in a form of their own are read; None = there are none.
    """

    name: str
    model_types: tuple[str, ...]
    end_tokens: tuple[str, ...] = ()
    original: Original | None = None


_FAMILIES = [
    Family(
        "ChatGLM",
        ("chatglm", "glm"),
        chatglm.END_TOKENS,
        Original(
            is_model=chatglm.is_chatglm,
            is_tokenizer=chatglm.is_chatglm_tokenizer,
            config=chatglm.config,
            adopt=chatglm.adopt,
            weights=chatglm.weights,
            model_class=chatglm.model_class,
            complete=chatglm.complete,
            tokenizer=chatglm.tokenizer,
            is_adapter=chatglm.is_original,
            adapter=chatglm.translate,
            convert="python -m main.utils.convert_chatglm '{folder}' --output DIR",
        ),
    ),
    Family("Qwen", ("qwen",)),
    Family("Llama", ("llama",)),
    Family("Llava", ("llava",)),
]


def register(family: Family) -> None:
    """Put a family before those that are known, so that it may also take the place of one.

    Raises:
        ConfigError: a name that no folder can have, or no model type.
    """
    if not family.name.isidentifier() or not family.model_types:
        raise ConfigError(
            f"family {family.name!r} with model_types={family.model_types!r}: the name becomes "
            "part of a folder's (letters, digits, '_'), and at least one model type is needed."
        )
    _FAMILIES.insert(0, family)


def family_of(config: Any) -> Family:
    """The table's line for a configuration; a plain one for a family that is not in it.

    >>> from transformers import MistralConfig
    >>> family_of(MistralConfig())
    Family(name='Mistral', model_types=('mistral',), end_tokens=(), original=None)
    """
    model_type = config.model_type
    for known in _FAMILIES:
        if model_type.startswith(known.model_types):
            return known
    return Family(model_type.capitalize(), (model_type,))


def family(config: Any) -> str:
    """The name that checkpoints carry: 'ChatGLM', 'Qwen', 'Llama', else the model type.

    >>> from transformers import Qwen2Config
    >>> family(Qwen2Config())
    'Qwen'
    """
    return family_of(config).name


def original_of(folder: Path | None) -> Original | None:
    """How to read the model in a folder whose form is its family's own; None for all others."""
    return next((o for o in _originals() if folder and o.is_model(folder)), None)


def original_tokenizer_of(folder: Path | None) -> Original | None:
    """The same for the tokenizer in a folder."""
    return next((o for o in _originals() if folder and o.is_tokenizer(folder)), None)


def original_adapter(tensors: dict[str, Any]) -> Original | None:
    """The same for the tensors of an adapter."""
    return next((o for o in _originals() if o.is_adapter(tensors)), None)


def _originals() -> list[Original]:
    return [family.original for family in _FAMILIES if family.original is not None]


def end_token_ids(config: Any, tokenizer: Any) -> set[int]:
    """Ids of the family's end tokens that are special tokens of this tokenizer."""
    special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items()}
    return {special[name] for name in family_of(config).end_tokens if name in special}


def auto_class(config: Any) -> Any:
    """Models that read images have a class of their own, which keeps their vision tower."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    reads_images = (
        hasattr(config, "vision_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def context_length(config: Any) -> int | None:
    """Tokens that the model was built for, prompt and completion together; None if unlimited."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "seq_length", "n_positions"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return None
