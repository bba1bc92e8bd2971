"""Small random checkpoints in the original layout: key names, shapes and files, made here."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from transformers.convert_slow_tokenizer import import_protobuf

# Pieces after <unk>, <s>, </s> and the 256 bytes; the earlier, the better the score.
# "▁love" is reached by way of "▁l", "▁lo", "▁lov".
PIECES = [
    "▁l", "▁lo", "▁lov", "▁love", "▁I", "▁t", "▁th", "▁thi", "▁this", "▁c", "▁ca", "▁cat",
    "ha", "▁ha", "▁r", "re", "▁re", "al", "▁real", "ly", "▁really", "▁s", "op", "▁sop",
    "你好", "好的", "天气", "北京", *"▁.你好的天气北京问答：abcdefghijklmnopqrstuvwxyzI0123456789",
]  # fmt: skip
FIRST_PIECE = 3 + 256
CONTROLS = FIRST_PIECE + len(PIECES)  # id of [MASK]; then [gMASK], [sMASK], sop, eop, ...
GMASK, SOP = CONTROLS + 1, CONTROLS + 3
SYSTEM, USER, ASSISTANT, OBSERVATION = range(CONTROLS + 5, CONTROLS + 9)

# GLM-4: the 256 bytes, then these, by rank.
RANKS = [b"\n\n", b"ha", b" l", b"ov", b" lov", b" love", "你".encode()[:2], "你".encode()]
GLM4_CONTROLS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>",
    "<|assistant|>", "<|observation|>",
]  # fmt: skip

CONFIG: dict[str, Any] = {
    "model_type": "chatglm",
    "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig"},
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_dropout": 0.0,
    "ffn_hidden_size": 24,
    "hidden_dropout": 0.0,
    "hidden_size": 16,
    "kv_channels": 8,
    "layernorm_epsilon": 1e-05,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "num_attention_heads": 4,
    "num_layers": 2,
    "padded_vocab_size": CONTROLS + 15,
    "post_layer_norm": True,
    "rmsnorm": True,
    "seq_length": 512,
    "torch_dtype": "float32",
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

# Adapters of the original code.
MODULES = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
RANK, ALPHA = 3, 12
PREFIX = "base_model.model."


def piece(text: str) -> int:
    return FIRST_PIECE + PIECES.index(text)


def byte(value: int) -> int:
    return 3 + value


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    name = {"_name_or_path": f"THUDM/{kind}-6b"}
    glm4 = {"pad_token_id": 264, "eos_token_id": [264, 271, 273], "rope_ratio": 500}
    return {**CONFIG, **name, **(glm4 if kind == "glm4" else {}), **changes}


def weights_of(config: dict[str, Any], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights under the original names."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * scale

    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    groups = config["multi_query_group_num"]
    rows = (heads + 2 * groups) * config["kv_channels"]
    weights = {
        "transformer.embedding.word_embeddings.weight": random(config["padded_vocab_size"], hidden),
        "transformer.rotary_pos_emb.inv_freq": random(config["kv_channels"] // 4),
        "transformer.encoder.final_layernorm.weight": 1 + random(hidden),
        "transformer.output_layer.weight": random(config["padded_vocab_size"], hidden),
    }
    for number in range(config["num_layers"]):
        layer = {
            "input_layernorm.weight": 1 + random(hidden),
            "self_attention.query_key_value.weight": random(rows, hidden),
            "self_attention.dense.weight": random(hidden, heads * config["kv_channels"]),
            "post_attention_layernorm.weight": 1 + random(hidden),
            "mlp.dense_h_to_4h.weight": random(2 * config["ffn_hidden_size"], hidden),
            "mlp.dense_4h_to_h.weight": random(hidden, config["ffn_hidden_size"]),
        }
        if config["add_qkv_bias"]:
            layer["self_attention.query_key_value.bias"] = random(rows)
        weights |= {f"transformer.encoder.layers.{number}.{k}": v for k, v in layer.items()}
    return weights


def write_checkpoint(folder: Path, kind: str = "chatglm3", **changes: Any) -> Path:
    """config.json, model.safetensors and the tokenizer's files; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(kind, **changes)
    write_json(folder / "config.json", config)
    save_file(weights_of(config), folder / "model.safetensors", metadata={"format": "pt"})
    return write_tokenizer(folder, kind)


def original_weights(targets: list[str]) -> dict[str, torch.Tensor]:
    """Those of the original's layers with such names, and its output layer if it is named."""
    found = weights_of(CONFIG).items()
    return {k: w for k, w in found if k.endswith(tuple(f".{t}.weight" for t in targets))}


def write_adapter(folder: Path, targets: list[str], magnitudes: bool = False, **options) -> Path:
    """A random adapter under the original's names, as peft would have saved it there."""
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name, weight in original_weights(targets).items():
        place = PREFIX + name.removesuffix(".weight")
        rows, columns = weight.shape
        tensors[f"{place}.lora_A.weight"] = torch.randn(RANK, columns, generator=generator) * 0.2
        tensors[f"{place}.lora_B.weight"] = torch.randn(rows, RANK, generator=generator) * 0.2
        if magnitudes:
            norms = torch.rand(rows, generator=generator) + 0.5
            tensors[f"{place}.lora_magnitude_vector"] = norms
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=targets,
        use_dora=magnitudes,
        base_model_name_or_path="THUDM/chatglm3-6b",
        **options,
    )
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))
    return folder


def write_tokenizer(folder: Path, kind: str) -> Path:
    glm4 = kind == "glm4"
    tokenizer: dict[str, Any] = {
        "tokenizer_class": "ChatGLM4Tokenizer" if glm4 else "ChatGLMTokenizer"
    }
    if glm4:
        tokens = [bytes([value]) for value in range(256)] + RANKS
        lines = [f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(tokens)]
        (folder / "tokenizer.model").write_text("\n".join(lines))
        named = enumerate(GLM4_CONTROLS, len(tokens))
        tokenizer["added_tokens_decoder"] = {str(i): {"content": name} for i, name in named}
    else:
        (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    write_json(folder / "tokenizer_config.json", tokenizer)
    return folder


def sentencepiece_model() -> bytes:
    proto = import_protobuf().ModelProto()
    kinds = proto.SentencePiece
    for name, kind in (("<unk>", kinds.UNKNOWN), ("<s>", kinds.CONTROL), ("</s>", kinds.CONTROL)):
        proto.pieces.add(piece=name, score=0.0, type=kind)
    for value in range(256):
        proto.pieces.add(piece=f"<0x{value:02X}>", score=0.0, type=kinds.BYTE)
    for rank, name in enumerate(PIECES):
        proto.pieces.add(piece=name, score=-float(rank), type=kinds.NORMAL)
    proto.trainer_spec.model_type = proto.trainer_spec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.normalizer_spec.add_dummy_prefix = True
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString()


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
