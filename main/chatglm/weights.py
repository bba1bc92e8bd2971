"""Weights of an original checkpoint under the names that transformers' Glm gives them."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import MissingFileError, ModelError
from main.system.pickles import Unreadable, load_plain
from main.system.settings import shards

if TYPE_CHECKING:
    import torch

LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
FUSED = re.compile(r"self_attention\.query_key_value\.(weight|bias)")
OUTER_NAMES = {
    "transformer.embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "transformer.encoder.final_layernorm.weight": "model.norm.weight",
    "transformer.output_layer.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.dense.weight": "self_attn.o_proj.weight",
    "mlp.dense_h_to_4h.weight": "mlp.gate_up_proj.weight",  # gate above up, as in Glm
    "mlp.dense_4h_to_h.weight": "mlp.down_proj.weight",
}
COMPUTED = "transformer.rotary_pos_emb.inv_freq"  # follows from the configuration


def load_weights(folder: Path, config: Any) -> "dict[str, torch.Tensor]":
    """Every weight of the folder, for a GlmForCausalLM of this configuration.

    Raises:
        MissingFileError: a shard that the index names is not there.
        ModelError: a name or a shape that does not belong, or an output layer that differs from
            the embedding although the configuration ties them.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(folder):
        weights.update(rename(name, tensor, config))
    return _tied(weights, folder) if config.tie_word_embeddings else weights


def rename(name: str, tensor: "torch.Tensor", config: Any) -> "dict[str, torch.Tensor]":
    """One original tensor as the Glm tensors made of it: none, one, or three.

    Raises:
        ModelError: an unknown name, or rows that are not those of q, k and v.
    """
    if name == COMPUTED:
        return {}
    names = new_names(name)
    parts = [tensor] if len(names) == 1 else split_rows(name, tensor, config)
    return dict(zip(names, parts, strict=True))


def new_names(name: str) -> list[str]:
    """The name that Glm gives to an original tensor; three names, of q, k and v, for a fused one.

    Raises:
        ModelError: an unknown name.
    """
    if name in OUTER_NAMES:
        return [OUTER_NAMES[name]]
    layer = LAYER.fullmatch(name)
    if layer and layer[2] in LAYER_NAMES:
        return [f"model.layers.{layer[1]}.{LAYER_NAMES[layer[2]]}"]
    fused = layer and FUSED.fullmatch(layer[2])
    if layer and fused:
        return [f"model.layers.{layer[1]}.self_attn.{part}_proj.{fused[1]}" for part in "qkv"]
    raise ModelError(
        f"the tensor '{name}' is none of a ChatGLM2, ChatGLM3 or GLM-4 model. Quantised and "
        "prompt-tuned checkpoints cannot be loaded; use the original fp16 one."
    )


def split_rows(name: str, tensor: "torch.Tensor", config: Any) -> "list[torch.Tensor]":
    """Rows of query_key_value, (heads + 2 groups) x head size -> those of q, k and v.

    Raises:
        ModelError: another number of rows.
    """
    groups = config.num_key_value_heads * config.head_dim
    sizes = [config.num_attention_heads * config.head_dim, groups, groups]
    if len(tensor) != sum(sizes):
        raise ModelError(
            f"'{name}' has {len(tensor)} rows; config.json asks for {sizes[0]} + {groups} + "
            f"{groups}. It belongs to another checkpoint."
        )
    # clone: parameters that share one storage could not be saved
    return [piece.clone() for piece in tensor.split(sizes)]


def _tied(weights: "dict[str, torch.Tensor]", folder: Path) -> "dict[str, torch.Tensor]":
    import torch

    output = weights.pop("lm_head.weight", None)
    if output is not None and not torch.equal(output, weights["model.embed_tokens.weight"]):
        raise ModelError(
            f"'{folder}': config.json ties the output layer to the embedding, and the file holds "
            "two different ones. Set tie_word_embeddings to false in config.json."
        )
    return weights


def _tensors(folder: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    for file in _files(folder):
        if file.suffix == ".safetensors":
            yield from _safe_tensors(file)
        else:
            yield from _pickled_tensors(file)


def _files(folder: Path) -> list[Path]:
    """The files of the checkpoint, safetensors where there are both kinds."""
    for whole in ("model.safetensors", "pytorch_model.bin"):
        names = shards(folder / f"{whole}.index.json")
        index, names = bool(names), names or [whole]
        files = [folder / name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if index and missing:
            raise MissingFileError(
                f"'{folder}' lacks {len(missing)} of {len(files)} weight files, e.g. "
                f"'{missing[0]}'. The download is incomplete."
            )
        if not missing:
            return files
    raise MissingFileError(
        f"'{folder}' holds no weights: looked for model.safetensors, pytorch_model.bin and their "
        "index files."
    )


def _safe_tensors(file: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118 (not a dict)
            yield name, opened.get_tensor(name)


def _pickled_tensors(file: Path) -> "Iterator[tuple[str, torch.Tensor]]":
    mapped = zipfile.is_zipfile(file)  # torch's first format cannot be mapped into memory
    try:
        tensors = load_plain(file, mmap=mapped)
    except Unreadable as error:
        raise ModelError(f"{file} is not loaded: it {error}.") from error
    yield from tensors.items()
