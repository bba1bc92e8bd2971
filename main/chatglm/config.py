"""config.json of an original checkpoint -> transformers' GlmConfig."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from main.chatglm.kind import Kind, kind_of
from main.chatglm.vocabulary import control_ids
from main.errors import ModelError
from main.system.settings import read_settings

# Settings that Glm's layers cannot follow: name -> the one value that they do follow.
FIXED = {
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "hidden_dropout": 0,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
}
NEEDED = (
    "ffn_hidden_size",
    "hidden_size",
    "layernorm_epsilon",
    "num_attention_heads",
    "num_layers",
    "padded_vocab_size",
    "seq_length",
)
ROPE_BASE = 10_000.0
STOP_NAMES = ("<|user|>", "<|observation|>")


def load_config(folder: Path) -> Any:
    """The GlmConfig of an original folder; see `map_config`."""
    return map_config(read_settings(folder / "config.json"), folder)


def map_config(raw: Mapping[str, Any], folder: Path) -> Any:
    """Original settings under Glm's names; those of `folder`, or a caller's changed ones.

    `rope_ratio` multiplies the base of the rotary embedding, which turns half of each head.
    `kv_channels` is a head's size, `multi_query_group_num` the number of key and value heads.

    Raises:
        ModelError: ChatGLM-6B, a quantised checkpoint, a prompt-tuned one, an image model, or a
            setting without counterpart in Glm.
    """
    from transformers import GlmConfig

    _refuse(raw, folder)
    heads = raw["num_attention_heads"]
    return GlmConfig(
        architectures=["GlmForCausalLM"],
        vocab_size=raw["padded_vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["ffn_hidden_size"],
        num_hidden_layers=raw["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=raw["multi_query_group_num"],
        head_dim=raw.get("kv_channels") or raw["hidden_size"] // heads,
        max_position_embeddings=raw["seq_length"],
        rms_norm_eps=raw["layernorm_epsilon"],
        attention_bias=raw.get("add_qkv_bias", False),
        attention_dropout=raw.get("attention_dropout", 0.0),
        tie_word_embeddings=raw.get("tie_word_embeddings", False),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ROPE_BASE * (raw.get("rope_ratio") or 1),
            "partial_rotary_factor": 0.5,
        },
        eos_token_id=_stop_ids(raw, folder),
        pad_token_id=raw.get("pad_token_id", 0),
        dtype=raw.get("torch_dtype") or raw.get("dtype"),
    )


def complete(model: Any, folder: Path) -> None:
    """What a model made of bare weights lacks: its folder's name and generation settings."""
    from transformers import GenerationConfig

    model.name_or_path = model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    model.generation_config.eos_token_id = model.config.eos_token_id


def _refuse(raw: Mapping[str, Any], folder: Path) -> None:
    """Raise for what would load as another model than the one in the folder."""
    kind = kind_of(folder)
    for problem in (_other_model(raw), _other_setting(raw, kind)):
        if problem:
            raise ModelError(f"'{folder}': {problem}")


def _other_model(raw: Mapping[str, Any]) -> str:
    lacking = [name for name in NEEDED if name not in raw]
    if lacking:
        names = ", ".join(map(repr, lacking))
        return f"config.json lacks {names}. Take it from the original checkpoint."
    if raw.get("quantization_bit"):
        return (
            f"its weights are quantised to {raw['quantization_bit']} bits by code of its own. "
            "Use the fp16 checkpoint, with quantization='4bit' where memory is short."
        )
    if raw.get("pre_seq_len"):
        return (
            f"it is prompt-tuned (pre_seq_len={raw['pre_seq_len']}), and Glm has no prefix "
            "encoder. Use the base checkpoint with a LoRA adapter."
        )
    if "vision_config" in raw:
        return "it is a model for images (GLM-4V), which is not built. Use glm-4-9b-chat for text."
    return ""


def _other_setting(raw: Mapping[str, Any], kind: Kind) -> str:
    for name, value in FIXED.items():
        if raw.get(name, value) != value:
            return (
                f"{name}={raw[name]!r} in config.json has no counterpart in transformers' Glm, "
                f"which computes as {name}={value!r}. Use a released checkpoint."
            )
    if not raw.get("multi_query_attention", False):
        return (
            "multi_query_attention is not set in config.json, and without it query_key_value "
            "mixes q, k and v head by head, which is not built. Use a released checkpoint."
        )
    if kind == "chatglm2" and (raw.get("rope_ratio") or 1) != 1:
        return (
            f"rope_ratio={raw['rope_ratio']} of a ChatGLM2 is said to stretch positions, where "
            "ChatGLM3 and GLM-4 change the base; that is not built. Use a ChatGLM3 checkpoint."
        )
    return ""


def _stop_ids(raw: Mapping[str, Any], folder: Path) -> list[int]:
    """Ids that end an answer: the declared ones, and the tokens that open the next turn."""
    declared = raw.get("eos_token_id", 2)
    found = set(declared if isinstance(declared, list) else [declared])
    if (folder / "tokenizer.model").is_file():
        ids = control_ids(folder)
        found |= {ids[name] for name in STOP_NAMES if name in ids}
    return sorted(found)
