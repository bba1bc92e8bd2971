"""Embeddings that an adapter brings, and the size of the vocabulary that it was trained on.

peft's files may hold, beside the adapter, the base's embedding or output layer as they were when it
was saved: after a resize, or because the adapter stands on them. Where new rows are spoken of, each
of the two layers has to get its own from the file, or share the other's.
"""

import logging
from typing import TYPE_CHECKING, Any

from main.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

PREFIX = "base_model.model."
# Where a layer's own weight lies: as it is, below an adapter, beside a copy, below trained rows.
PLACES = ("", "base_layer.", "original_module.", "token_adapter.base_layer.")
WHOLE, ROWS = "modules_to_save.weight", "token_adapter.trainable_tokens_delta"


def embedding_keys(model: "PreTrainedModel") -> "dict[str, list[str]]":
    """Name of the embedding and of the output layer -> what an adapter file may call its weight."""
    return {n: [f"{PREFIX}{n}.{place}weight" for place in PLACES] for n in _names(model)}


def _names(model: "PreTrainedModel") -> list[str]:
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if module in layers]


def without_doubles(
    model: "PreTrainedModel", config: Any, tensors: "dict[str, torch.Tensor]"
) -> "dict[str, torch.Tensor]":
    """Without what peft writes twice when the vocabulary was resized, and reads once."""
    doubles = [f"{PREFIX}{n}.{WHOLE}" for n in _names(model) if f"{PREFIX}{n}.weight" in tensors]
    doubles += [f"{PREFIX}{n}.{ROWS}" for n in _names(model) if not _token_indices(n, config)]
    return {name: tensor for name, tensor in tensors.items() if name not in doubles}


def fit_vocabulary(
    model: "PreTrainedModel", config: Any, tensors: "dict[str, torch.Tensor]", where: str
) -> None:
    """Give the embeddings as many rows as the adapter speaks of, if it brings all that are new.

    Raises:
        ModelError: rows of one of the layers are neither in the base nor in the adapter.
    """
    keys = embedding_keys(model)
    own = embedding_rows(model)
    sizes = {name: _size(name, spelt, config, tensors) for name, spelt in keys.items()}
    found = {name: size for name, size in sizes.items() if size is not None}
    whole = {name for name, spelt in keys.items() if any(key in tensors for key in spelt)}
    beyond = max(found.values(), default=own)
    if {found[name] for name in whole} <= {own} and beyond <= own:
        return
    brought = {n for n in found if n in whole or _has_rows(n, config, range(own, beyond))}
    shared = _are_tied(model) and not any(_is_in(n, config.modules_to_save) for n in keys)
    if not (brought == set(keys) or (brought and shared)) or len(set(found.values())) > 1:
        raise ModelError(
            f"{where}: it was trained on a vocabulary of another size ({found}, the base has {own} "
            "rows), and the rows added to the other embedding are not in it. Train with "
            "modules_to_save=['embed_tokens', 'lm_head'] when you add tokens."
        )
    log.warning("The vocabulary is resized from %d to %d rows, as in the adapter.", own, beyond)
    model.resize_token_embeddings(beyond, mean_resizing=False)


def brought_weights(
    keys: dict[str, list[str]],
    expected: "dict[str, torch.Tensor]",
    given: "dict[str, torch.Tensor]",
) -> list[str]:
    """Of the layers of `embedding_keys`, those that a file brings beside the adapter's own."""
    return [k for names in keys.values() for k in names if k in given and k not in expected]


def embedding_rows(model: "PreTrainedModel") -> int:
    """Rows of a model's embedding, whatever an adapter puts around it."""
    return int(model.get_input_embeddings().weight.shape[0])  # type: ignore[union-attr, index]


def _are_tied(model: "PreTrainedModel") -> bool:
    output: Any = model.get_output_embeddings()
    embedding: Any = model.get_input_embeddings()
    return output is not None and output.weight is embedding.weight


def _size(
    name: str, keys: list[str], config: Any, tensors: "dict[str, torch.Tensor]"
) -> int | None:
    """Rows of a layer that the tensors speak of; None if they do not."""
    for key in keys:
        if key in tensors:
            return len(tensors[key])
    if f"{PREFIX}{name}.lora_embedding_A" in tensors:
        return tensors[f"{PREFIX}{name}.lora_embedding_A"].shape[1]  # (r, V)
    if f"{PREFIX}{name}.lora_B.weight" in tensors:
        return len(tensors[f"{PREFIX}{name}.lora_B.weight"])  # (V, r)
    indices = _token_indices(name, config)
    return max(indices) + 1 if indices else None


def _has_rows(name: str, config: Any, rows: range) -> bool:
    return bool(rows) and set(rows) <= set(_token_indices(name, config))


def _token_indices(name: str, config: Any) -> list[int]:
    """Rows of a layer that are trained alone (peft's `trainable_token_indices`)."""
    given = getattr(config, "trainable_token_indices", None) or {}
    given = given if isinstance(given, dict) else {"embed_tokens": given}
    return next((rows for layer, rows in given.items() if _is_in(name, [layer])), [])


def _is_in(name: str, names: list[str] | None) -> bool:
    return any(f".{name}".endswith(f".{other}") for other in names or [])
