"""Loading a base model and its tokenizer, model families, stop tokens."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    GenerationConfig,
    Glm4Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen3Config,
)

from main.dialogue.ends import stop_token_ids
from main.errors import ConfigError, MissingExtraError, MissingFileError, ModelError
from main.models import context_length, family, load_model, load_tokenizer

TEMPLATES = Path(trl.__file__).parent / "chat_templates"


def tiny_llama(folder: Path, **options) -> Path:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
    }
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    LlamaForCausalLM(config).to(options.get("dtype", torch.float32)).save_pretrained(folder)
    return folder


def with_template(path: Path, name: str):
    tokenizer = load_tokenizer(path)
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return tokenizer


def test_a_model_is_loaded_in_eval_mode_with_the_weights_of_the_file(tmp_path):
    model = load_model(tiny_llama(tmp_path))
    torch.manual_seed(0)
    again = LlamaForCausalLM(model.config)
    assert not model.training
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [
        (torch.float32, "auto", torch.float32),
        (torch.bfloat16, "auto", torch.bfloat16),
        (torch.float16, "auto", torch.float32),  # a CPU runs float16 badly
        (torch.float16, "float16", torch.float16),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype_auto_keeps_what_the_device_runs_well(tmp_path, stored, asked, expected):
    model = load_model(tiny_llama(tmp_path, dtype=stored), dtype=asked, device="cpu")
    assert model.dtype == expected


def test_a_dtype_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"dtype='half-ish' must be 'auto', 'float32'"):
        load_model(tiny_llama(tmp_path), dtype="half-ish")


def test_device_and_device_map_exclude_each_other(tmp_path):
    with pytest.raises(ConfigError, match="exclude each other"):
        load_model(tiny_llama(tmp_path), device="cpu", device_map="auto")


def test_a_path_that_does_not_exist_is_named_with_where_it_was_looked_for(tmp_path):
    with pytest.raises(MissingFileError, match=r"model folder '.*gone' does not exist \(looked"):
        load_model(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_tokenizer(tmp_path / "gone")


def test_a_file_is_no_model(tmp_path):
    (tmp_path / "weights.gguf").write_text("x")
    with pytest.raises(MissingFileError, match="is a file; a model is a folder"):
        load_model(tmp_path / "weights.gguf")


def test_a_hub_name_that_cannot_be_had_offline_says_both_places():
    with pytest.raises(
        MissingFileError, match=r"'model/no-such-3b' is neither a folder .* nor .* from the hub"
    ):
        load_model("model/no-such-3b")


def test_an_empty_folder_and_one_without_weights_say_what_was_looked_for(tmp_path):
    with pytest.raises(MissingFileError, match=r"looked for config\.json; found an empty folder"):
        load_model(tmp_path)
    tiny_llama(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingFileError, match=r"looked for \*\.safetensors.*found config\.json"):
        load_model(tmp_path)
    with pytest.raises(MissingFileError, match=r"holds no tokenizer: looked for tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_an_adapter_given_as_the_model_is_recognised(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter, not a model"):
        load_model(tmp_path)


def test_a_truncated_weight_file_is_one_clear_error(tmp_path):
    weights = tiny_llama(tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model '.*' cannot be loaded: "):
        load_model(tmp_path)


def test_weights_that_the_file_lacks_are_not_made_up(tmp_path):
    path = tiny_llama(tmp_path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}))
    # 9 tensors a layer: q, k, v, o, gate, up, down, two norms
    with pytest.raises(ModelError, match=r"lack 9 tensors .* e\.g\. 'model\.layers\.2\."):
        load_model(tmp_path)


def test_a_model_that_brings_code_is_refused_unless_trusted(tmp_path):
    config = {"model_type": "odd", "auto_map": {"AutoConfig": "odd.OddConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "odd.py").write_text("raise SystemExit('its code ran')")
    with pytest.raises(ModelError, match="If you trust it, pass trust_remote_code=True"):
        load_model(tmp_path)


def test_four_bit_without_bitsandbytes_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"quantization='4bit' needs.*\[qlora\]"):
        load_model(tiny_llama(tmp_path), quantization="4bit")


def test_an_unknown_quantization_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="must be '4bit', '8bit' or None"):
        load_model(tiny_llama(tmp_path), quantization="int3")  # type: ignore[arg-type]


def test_a_four_bit_model_answers_almost_like_the_full_one(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
    model = load_model(tiny_llama(tmp_path), device="cpu")
    small = load_model(tmp_path, quantization="4bit", device="cpu")
    ids = torch.arange(20)[None]
    full, quantized = model(ids).logits.flatten(), small(ids).logits.flatten().float()
    assert type(small.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    # NF4 keeps each weight within about 5 % of its block's largest: most of the direction stays
    assert torch.cosine_similarity(full, quantized, dim=0) > 0.95


def test_a_slow_tokenizer_is_refused(tmp_path, monkeypatch):
    ByT5Tokenizer().save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("")
    with pytest.raises(ModelError, match=r"only as the slow class ByT5Tokenizer.*tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("specials", "expected"),
    [
        (["<|x|>", "<|endoftext|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["<|x|>", "<|endoftext|>"], "<|endoftext|>"),
        (["<|x|>", "<|reserved_special_token_0|>"], "<|reserved_special_token_0|>"),
        (["<|x|>"], "<end>"),
    ],
)
def test_the_pad_token_is_a_spare_token_else_eos_and_the_vocabulary_never_grows(
    tmp_path, small_model_path, specials, expected
):
    tokenizer = AutoTokenizer.from_pretrained(small_model_path)
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    names = ["<end>", *specials]
    plain["added_tokens"] = [
        plain["added_tokens"][0] | {"id": i, "content": name} for i, name in enumerate(names)
    ]
    vocabulary = {token: i for token, i in plain["model"]["vocab"].items() if i >= len(names)}
    plain["model"]["vocab"] = dict(zip(names, range(len(names)), strict=True)) | vocabulary
    (tmp_path / "tokenizer.json").write_text(json.dumps(plain), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    loaded = load_tokenizer(tmp_path)
    assert loaded.pad_token == expected
    assert loaded.pad_token_id == names.index(expected)
    assert len(loaded) == len(tokenizer)


def test_families_name_the_checkpoint_folders():
    assert family(Glm4Config()) == "ChatGLM"
    assert family(Qwen3Config()) == "Qwen"
    assert family(LlamaConfig()) == "Llama"
    assert family(MistralConfig()) == "Mistral"
    assert family(type("Config", (), {"model_type": "chatglm"})) == "ChatGLM"


def test_context_length_reads_the_config():
    assert context_length(LlamaConfig(max_position_embeddings=99)) == 99


def test_stop_ids_are_all_end_ids_of_the_config_the_eos_and_the_turn_end(qwen_tokenizer_path):
    tokenizer = with_template(qwen_tokenizer_path, "qwen2_5")
    turn_end, text_end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.eos_token = "<|endoftext|>"
    assert stop_token_ids(GenerationConfig(), tokenizer) == sorted([turn_end, text_end])
    assert stop_token_ids(GenerationConfig(eos_token_id=[5, 7]), tokenizer) == sorted(
        [5, 7, turn_end, text_end]
    )


def test_the_turn_end_of_llama3_is_eot(llama3_tokenizer_path):
    tokenizer = with_template(llama3_tokenizer_path, "llama3")
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") in stop_token_ids(
        GenerationConfig(), tokenizer
    )


def test_a_glm_answer_ends_where_the_next_role_begins(qwen_tokenizer_path):
    tokenizer = with_template(qwen_tokenizer_path, "glm4moe")
    roles = ["<|user|>", "<|assistant|>", "<|observation|>", "<|system|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": roles})
    assert tokenizer.convert_tokens_to_ids("<|user|>") in stop_token_ids(
        GenerationConfig(), tokenizer
    )


def test_a_tokenizer_without_a_template_stops_at_eos(llama3_tokenizer_path):
    tokenizer = load_tokenizer(llama3_tokenizer_path)
    tokenizer.chat_template = None
    assert stop_token_ids(GenerationConfig(), tokenizer) == [tokenizer.eos_token_id]


def test_importing_models_loads_no_torch():
    code = "import sys, main.models; print({'torch', 'peft', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_real_small_model_and_its_tokenizer_load(small_model_path, tmp_path):
    shutil.copytree(small_model_path, tmp_path / "copy", ignore=shutil.ignore_patterns("*.safet*"))
    tokenizer = load_tokenizer(tmp_path / "copy")
    assert tokenizer.is_fast
    ends = stop_token_ids(GenerationConfig(eos_token_id=2), tokenizer)
    assert ends == [tokenizer.convert_tokens_to_ids("<|im_end|>")]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "device='gpu' is no device's name"),
        ("tpu:0", "device='tpu:0' is no device's name"),
        ("cuda:99", "device='cuda:99'(:| is not on this machine)"),
        ("mtia", "device='mtia' is not on this machine; here are"),
        ("cpu:3", "device='cpu:3': this machine has 1 of that kind"),
        (3.5, "device=3.5 is no device's name"),
    ],
)
def test_a_device_that_is_not_here_is_refused_by_name(tiny_model_path, device, message):
    with pytest.raises(ConfigError, match=message):
        load_model(tiny_model_path, device=device)
