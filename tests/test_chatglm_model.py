"""Original weights on Glm: against a forward pass written here, and what has to be refused."""

import json
import math

import pytest
import torch
from chatglm_checkpoints import CONFIG, config_of, weights_of, write_checkpoint, write_json
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from main.errors import MissingFileError, ModelError
from main.models import context_length, family, load_config, load_model

IDS = torch.tensor([[300, 5, 261, 40, 299, 7, 320]])


def rotate(vector: list[float], position: int, base: float) -> list[float]:
    """RoPE (arXiv 2104.09864) on the first half of a head: pairs (0, 1), (2, 3), ... as complex
    numbers turned by position * base ** (-2 i / size of that half)."""
    half = len(vector) // 2
    turned = []
    for i in range(0, half, 2):
        angle = position * base ** (-i / half)
        number = complex(vector[i], vector[i + 1]) * complex(math.cos(angle), math.sin(angle))
        turned += [number.real, number.imag]
    return turned + vector[half:]


def attention(fused: torch.Tensor, config: dict, base: float) -> torch.Tensor:
    """Causal attention, position by position, from rows (q heads, k groups, v groups)."""
    heads, size = config["num_attention_heads"], config["kv_channels"]
    groups = config["multi_query_group_num"]
    parts = fused.view(len(fused), heads + 2 * groups, size)
    result = torch.zeros(len(fused), heads, size, dtype=fused.dtype)
    for head in range(heads):
        group = head * groups // heads
        for t in range(len(fused)):
            query = rotate(parts[t, head].tolist(), t, base)
            scores = []
            for s in range(t + 1):
                key = rotate(parts[s, heads + group].tolist(), s, base)
                scores.append(sum(a * b for a, b in zip(query, key, strict=True)))
            weights = torch.softmax(torch.tensor(scores).to(fused) / math.sqrt(size), 0)
            result[t, head] = weights @ parts[: t + 1, heads + groups + group]
    return result.flatten(1)


def norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return weight * hidden / (hidden.pow(2).mean(-1, keepdim=True) + epsilon).sqrt()


def reference_logits(config: dict, weights: dict, ids: torch.Tensor) -> torch.Tensor:
    """The model as its paper and configuration describe it, in float64."""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    epsilon = config["layernorm_epsilon"]
    base = 10_000 * config.get("rope_ratio", 1)
    hidden = weights["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(config["num_layers"]):
        w = {
            name.split(f"layers.{number}.")[1]: tensor
            for name, tensor in weights.items()
            if f"layers.{number}." in name
        }
        x = norm(hidden, w["input_layernorm.weight"], epsilon)
        fused = x @ w["self_attention.query_key_value.weight"].T
        fused = fused + w.get("self_attention.query_key_value.bias", 0.0)
        hidden = hidden + attention(fused, config, base) @ w["self_attention.dense.weight"].T
        x = norm(hidden, w["post_attention_layernorm.weight"], epsilon)
        gate, up = (x @ w["mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        hidden = hidden + (gate * torch.sigmoid(gate) * up) @ w["mlp.dense_4h_to_h.weight"].T
    hidden = norm(hidden, weights["transformer.encoder.final_layernorm.weight"], epsilon)
    return hidden @ weights["transformer.output_layer.weight"].T


def test_the_rotary_pairs_are_neighbours_and_half_of_a_head_is_left_alone():
    # position 3, base 10000, head of 4: one pair, turned by 3 radians
    turned = rotate([1.0, 0.0, 5.0, 6.0], 3, 10_000)
    assert turned == pytest.approx([-0.9899925, 0.1411200, 5.0, 6.0], abs=1e-7)


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"multi_query_group_num": 1},
        {"add_qkv_bias": False},
        {"rope_ratio": 500, "layernorm_epsilon": 1.5625e-07},
        {"kv_channels": 12},
    ],
    ids=str,
)
def test_logits_are_those_of_a_forward_pass_written_out(tmp_path, changes):
    config = config_of("chatglm3", **changes)
    model = load_model(write_checkpoint(tmp_path, **changes))
    expected = reference_logits(config, weights_of(config), IDS[0])
    assert torch.allclose(model(IDS).logits[0].double(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_tied_output_layer_is_the_embedding(tmp_path):
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True)
    weights = load_file(folder / "model.safetensors")
    tied = weights["transformer.embedding.word_embeddings.weight"]
    with pytest.raises(ModelError, match=r"ties the output layer.*two different ones"):
        load_model(folder)
    for kept in (True, False):  # the file may hold it twice, or once
        weights["transformer.output_layer.weight"] = tied.clone()
        stored = dict(weights)
        if not kept:
            del stored["transformer.output_layer.weight"]
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        model = load_model(folder)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        expected = reference_logits(CONFIG, weights, IDS[0])
        assert torch.allclose(model(IDS).logits[0].double(), expected, rtol=0, atol=1e-5)


def split_weights(folder, form: str) -> None:
    """model.safetensors -> two shards, or one or two pickled files."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    half = len(names) // 2
    if form == "one pickle":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    whole = "model.safetensors" if form == "shards" else "pytorch_model.bin"
    stem, suffix = whole.split(".")
    index: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        content = {name: weights[name] for name in part}
        if form == "shards":
            save_file(content, folder / file, metadata={"format": "pt"})
        else:
            torch.save(content, folder / file)
        index |= dict.fromkeys(part, file)
    write_json(folder / f"{whole}.index.json", {"weight_map": index})


@torch.no_grad()
@pytest.mark.parametrize("form", ["shards", "one pickle", "pickles"])
def test_every_form_of_file_gives_the_same_model(tmp_path, form):
    folder = write_checkpoint(tmp_path)
    expected = load_model(folder)(IDS).logits
    split_weights(folder, form)
    assert torch.equal(load_model(folder)(IDS).logits, expected)


def test_a_missing_shard_is_named(tmp_path):
    folder = write_checkpoint(tmp_path)
    split_weights(folder, "shards")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"lacks 1 of 2 weight files, e\.g\. 'model-00002"):
        load_model(folder)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit",))

    folder = write_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.output_layer.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"names (builtins|__builtin__)\.exec, which is no tensor"):
        load_model(folder)


def test_half_precision_weights_run_as_float32_on_a_cpu(tmp_path):
    folder = write_checkpoint(tmp_path, torch_dtype="float16")
    weights = load_file(folder / "model.safetensors")
    half = {name: tensor.half() for name, tensor in weights.items()}
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_model(folder, device="cpu").dtype == torch.float32
    model = load_model(folder, device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
def test_a_saved_model_opens_in_plain_transformers_and_computes_the_same(tmp_path, kind):
    model = load_model(write_checkpoint(tmp_path / "original", kind))
    model.save_pretrained(tmp_path / "saved")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(plain(IDS).logits, model(IDS).logits)
    assert plain.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert torch.equal(load_model(tmp_path / "saved")(IDS).logits, model(IDS).logits)


def test_family_context_and_stop_tokens(tmp_path):
    folder = write_checkpoint(tmp_path)
    config = load_config(folder)
    model = load_model(folder)
    assert (family(config), context_length(config)) == ("ChatGLM", 512)
    assert model.name_or_path == str(folder)
    # </s>, <|user|>, <|observation|>
    first = CONFIG["padded_vocab_size"] - 15
    assert model.generation_config.eos_token_id == [2, first + 6, first + 8]


def test_generation_settings_of_the_folder_are_kept(tmp_path):
    folder = write_checkpoint(tmp_path, "glm4")
    write_json(folder / "generation_config.json", {"eos_token_id": [264], "top_p": 0.8})
    config = load_model(folder).generation_config
    assert (config.top_p, config.eos_token_id) == (0.8, [264, 271, 273])


def test_the_original_s_own_configuration_object_is_translated(tmp_path):
    class ChatGLMConfig:  # as trust_remote_code=True would return it
        model_type = "chatglm"

        def to_dict(self):
            return {**config_of("chatglm3"), "seq_length": 99}

    model = load_model(write_checkpoint(tmp_path), config=ChatGLMConfig())
    assert model.config.model_type == "glm"
    assert context_length(model.config) == 99


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_bit": 4}, "quantised to 4 bits.*Use the fp16 checkpoint"),
        ({"position_encoding_2d": True}, "is ChatGLM-6B, the first generation"),
        ({"pre_seq_len": 128}, r"prompt-tuned \(pre_seq_len=128\)"),
        ({"vision_config": {}}, r"model for images \(GLM-4V\)"),
        ({"rmsnorm": False}, "rmsnorm=False in config.json has no counterpart"),
        ({"apply_residual_connection_post_layernorm": True}, "has no counterpart"),
        ({"add_bias_linear": True}, "has no counterpart"),
        ({"post_layer_norm": False}, "has no counterpart"),
        ({"multi_query_attention": False}, "mixes q, k and v head by head"),
    ],
)
def test_what_would_load_as_another_model_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        load_model(write_checkpoint(tmp_path, **changes))


def test_a_chatglm2_with_stretched_positions_is_refused(tmp_path):
    with pytest.raises(ModelError, match="rope_ratio=50 of a ChatGLM2 is said to stretch"):
        load_config(write_checkpoint(tmp_path, "chatglm2", rope_ratio=50))


def test_a_setting_that_config_json_lacks_is_named(tmp_path):
    folder = write_checkpoint(tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    del raw["ffn_hidden_size"]
    write_json(folder / "config.json", raw)
    with pytest.raises(ModelError, match=r"config\.json lacks 'ffn_hidden_size'"):
        load_config(folder)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("transformer.prefix_encoder.embedding.weight", (2, 2), "none of a ChatGLM2, ChatGLM3"),
        (
            "transformer.encoder.layers.1.self_attention.query_key_value.bias",
            (63,),
            r"has 63 rows; config\.json asks for 32 \+ 16 \+ 16",
        ),
    ],
)
def test_a_tensor_that_does_not_belong_is_refused(tmp_path, name, shape, message):
    folder = write_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors") | {name: torch.zeros(shape)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message):
        load_model(folder)


def test_missing_weights_are_refused(tmp_path):
    folder = write_checkpoint(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*model\.layers\.1\.mlp\.down_proj"):
        load_model(folder)
