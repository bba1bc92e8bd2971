"""The tokens that end an answer."""

import os
from typing import TYPE_CHECKING, Any

from main.dialogue.frame import probe_dialogue
from main.dialogue.renderer import renderer_of
from main.models.families import end_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def stop_token_ids(
    model: "PreTrainedModel | GenerationConfig",
    tokenizer: "PreTrainedTokenizerBase",
    model_config: Any = None,
) -> list[int]:
    """Every id that ends an answer, ascending.

    The generation config's end ids, the tokenizer's eos, the family's end tokens, and what the
    chat template writes after an assistant's turn; a template that writes nothing (GLM-4) is ended
    by the next role's token. A bare generation config needs `model_config` to tell the family.
    """
    config = getattr(model, "generation_config", model)
    ends = config.eos_token_id
    found = set(ends if isinstance(ends, list | tuple) else [ends])
    found |= {tokenizer.eos_token_id, _turn_end(tokenizer)}
    model_config = getattr(model, "config", model_config)
    if model_config is not None:
        found |= end_token_ids(model_config, tokenizer)
    return sorted(int(token) for token in found if token is not None)


def generation_config(path: str | os.PathLike[str], config: Any) -> "GenerationConfig":
    """Of a model that is not loaded; its end tokens come from here, as in transformers."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(str(path))
    except OSError:
        return GenerationConfig.from_model_config(config)


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the special token that the chat template puts after an assistant's turn, if any."""
    if not tokenizer.chat_template:
        return None
    renderer = renderer_of(tokenizer)
    turns = probe_dialogue()
    for messages in (turns[:2], turns[:3]):
        text = renderer.render(messages)
        found = _special_prefix(tokenizer, text.rpartition(turns[1]["content"])[2])
        if found is not None:
            return found
    return None


def _special_prefix(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """Id of the longest special token that `text` starts with; a bare BOS ends nothing."""
    text = text.lstrip()
    starts = [
        (len(str(token)), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and text.startswith(str(token))
    ]
    found = max(starts)[1] if starts else None
    only_bos = found == tokenizer.bos_token_id != tokenizer.eos_token_id
    return None if only_bos else found
