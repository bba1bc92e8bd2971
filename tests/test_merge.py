"""Merging: the folder is the adapted model, whatever the adapter, the dtype and the base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import Linear
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from main.errors import ConfigError, MissingFileError, ModelError
from main.models import LoraOptions, add_adapter, load_adapter, load_model, save_adapter
from main.models.combine import combine_adapters
from main.predictor.hf import Predictor
from main.utils.merge_model import main, merge_model

VOCABULARY = 320
IDS = torch.arange(1, 13).reshape(2, 6)
LORA: dict[str, Any] = {"lora_r": 4, "lora_alpha": 8}
VARIANTS = {
    "plain": LoraOptions(**LORA),
    "dora": LoraOptions(**LORA, use_dora=True),
    "rslora": LoraOptions(**LORA, use_rslora=True),
    "pissa": LoraOptions(**LORA, init_lora_weights="pissa"),
    "head": LoraOptions(**LORA, modules_to_save=["lm_head"]),
    "embedding": LoraOptions(**LORA, modules_to_save=["embed_tokens"]),
    "lora_on_head": LoraOptions(**LORA, target_modules=["q_proj", "lm_head"]),
    "lora_on_embedding": LoraOptions(**LORA, target_modules=["q_proj", "embed_tokens"]),
}


@pytest.fixture(scope="module")
def tokenizer(small_model_path):
    """SmolLM2's template and special tokens over its first 320 - 17 pieces: small embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(small_model_path)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {t: i for t, i in state["model"]["vocab"].items() if i < VOCABULARY}
    state["model"]["vocab"], state["model"]["merges"] = vocabulary, []
    tokenizer._tokenizer = tokenizer.backend_tokenizer.from_str(json.dumps(state))
    return tokenizer


@pytest.fixture
def base(tmp_path, tokenizer):
    """Write a base model with its tokenizer; returns a function (tied, dtype) -> folder."""

    def write(tied: bool = False, dtype: torch.dtype = torch.float32, hidden: int = 64) -> Path:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
            eos_token_id=0,
        )
        model: Any = LlamaForCausalLM(config)
        model.to(dtype).save_pretrained(tmp_path / "base")
        tokenizer.save_pretrained(tmp_path / "base")
        return tmp_path / "base"

    return write


def train(model, options: LoraOptions, folder: Path, seed: int = 0) -> PeftModel:
    """An adapter whose every part is moved by three large steps, saved to `folder`."""
    torch.manual_seed(seed)
    model = add_adapter(model, options).train()  # in eval mode bitsandbytes repacks its weights
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        model(IDS + seed, labels=IDS + seed).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    save_adapter(model, folder)
    return model


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_merged_folder_is_the_adapted_model_in_plain_transformers(tmp_path, base, name, tied):
    folder = base(tied)
    expected = train(load_model(folder), VARIANTS[name], tmp_path / "adapter")(IDS).logits
    assert (logits(folder) - expected).abs().max() > 0.05  # there is something to merge
    report = merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    assert report.merged < 1e-5
    assert report.saved < 1e-5
    assert report.same_top == 1
    assert report.effect > 0.05


@pytest.mark.parametrize(("name", "still_tied"), [("plain", True), ("head", False)])
def test_a_tied_output_layer_stays_tied_unless_merging_moved_it(tmp_path, base, name, still_tied):
    folder = base(tied=True)
    train(load_model(folder), VARIANTS[name], tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["tie_word_embeddings"] is still_tied
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not still_tied
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored["model.embed_tokens.weight"], embedding)


def test_the_predictor_gives_the_same_greedy_text_for_adapter_and_merged_folder(tmp_path, base):
    folder = base()
    train(load_model(folder), VARIANTS["dora"], tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    queries = ["How are you?", "你好", "a"]
    adapted = Predictor(folder, peft_path=tmp_path / "adapter")(queries, max_new_tokens=12)
    assert Predictor(tmp_path / "merged")(queries, max_new_tokens=12) == adapted
    assert Predictor(folder)(queries, max_new_tokens=12) != adapted


def test_tokenizer_template_and_end_tokens_come_with_the_model(tmp_path, base, tokenizer):
    folder = base()
    model = train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    changed = AutoTokenizer.from_pretrained(folder)
    changed.chat_template = changed.chat_template.replace("<|im_end|>", "<|endoftext|>")
    changed.save_pretrained(tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16")
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again.chat_template == changed.chat_template
    generation = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    # the base's <|endoftext|> = 0, which the new template writes too, and SmolLM2's eos
    assert generation["eos_token_id"] == [0, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert generation["pad_token_id"] == again.pad_token_id
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert {t.dtype for t in stored.values()} == {torch.bfloat16}
    assert model.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 0.002), ("bfloat16", 0.02)])
def test_half_precision_bases_are_merged_in_float32_and_rounded_once(tmp_path, base, dtype, limit):
    folder = base(dtype=getattr(torch, dtype))
    model = load_model(folder, dtype="float32")
    expected = train(model, VARIANTS["plain"], tmp_path / "adapter")
    with torch.no_grad():
        expected = expected(IDS).logits
    report = merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    assert report.dtype == dtype
    assert report.merged < 1e-5
    assert (logits(tmp_path / "merged") - expected).abs().max() < limit
    exact = {k: v.to(getattr(torch, dtype)) for k, v in _merged_by_peft(folder, tmp_path).items()}
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert all(torch.equal(stored[name], exact[name]) for name in stored)


def _merged_by_peft(folder: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    return model.state_dict()


def test_embeddings_resized_for_new_tokens_are_merged_with_their_rows(tmp_path, base):
    folder = base(tied=True)
    own = AutoTokenizer.from_pretrained(folder)
    own.add_tokens(["<first>", "<second>"], special_tokens=True)
    model = load_model(folder)
    model.resize_token_embeddings(len(own))
    options = LoraOptions(**LORA, modules_to_save=["embed_tokens", "lm_head"])
    expected = train(model, options, tmp_path / "adapter")
    own.save_pretrained(tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[5, len(own) - 2, len(own) - 1, 7]])
    assert merged.config.vocab_size == len(own)
    torch.testing.assert_close(merged(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)
    reloaded = load_adapter(load_model(folder), tmp_path / "adapter")
    torch.testing.assert_close(reloaded(ids).logits, expected(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_resized_embedding_without_its_output_rows_is_refused(tmp_path, base):
    folder = base(tied=True)
    model = load_model(folder)
    model.resize_token_embeddings(VOCABULARY + 2)
    train(model, VARIANTS["embedding"], tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"another size .*322.*the base has 320.*'lm_head'\]"):
        merge_model(folder, tmp_path / "adapter", tmp_path / "merged")


def deltas(folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to every weight of the base, by peft's own merge."""
    plain = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    return {k: v - plain[k] for k, v in adapted.merge_and_unload().state_dict().items()}


def test_several_adapters_add_up_by_weight_whatever_their_ranks_and_layers(tmp_path, base):
    folder = base()
    kinds = [
        LoraOptions(lora_r=2, lora_alpha=8),
        LoraOptions(lora_r=5, lora_alpha=3, use_rslora=True, target_modules=["q_proj", "lm_head"]),
        LoraOptions(lora_r=3, lora_alpha=6, init_lora_weights="pissa", target_modules=["up_proj"]),
    ]
    adapters = [tmp_path / f"adapter{i}" for i in range(3)]
    for i, options in enumerate(kinds):
        train(load_model(folder), options, adapters[i], seed=i)
    weights = [0.5, -1.5, 2.0]
    merge_model(folder, adapters, tmp_path / "merged", weights=weights)
    plain = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    parts = [deltas(folder, adapter) for adapter in adapters]
    for name, weight in load_file(tmp_path / "merged" / "model.safetensors").items():
        total = sum(w * part[name] for w, part in zip(weights, parts, strict=True))
        torch.testing.assert_close(weight, plain[name] + total, rtol=1e-5, atol=1e-6)
    report = json.loads((tmp_path / "merged" / "merge_report.json").read_text())
    assert report["weights"] == weights


def test_one_adapter_with_a_weight_is_scaled(tmp_path, base):
    folder = base()
    train(load_model(folder), VARIANTS["rslora"], tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "none", weights=[0.0])
    torch.testing.assert_close(logits(tmp_path / "none"), logits(folder))


@pytest.mark.parametrize(
    ("name", "reason"),
    [("dora", "magnitudes do not add up"), ("head", "modules_to_save are whole weights")],
)
def test_adapters_that_do_not_add_up_are_refused(tmp_path, base, name, reason):
    folder = base()
    for i, options in enumerate(("plain", name)):
        train(load_model(folder), VARIANTS[options], tmp_path / f"adapter{i}")
    with pytest.raises(ModelError, match=rf"adapter1' cannot be combined .*{reason}"):
        merge_model(folder, [tmp_path / "adapter0", tmp_path / "adapter1"], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_adapters_of_models_of_different_size_are_refused(tmp_path, base):
    for i, hidden in enumerate((64, 32)):
        train(load_model(base(hidden=hidden)), VARIANTS["plain"], tmp_path / f"adapter{i}")
    with pytest.raises(ModelError, match="layers of different sizes"):
        combine_adapters([tmp_path / "adapter0", tmp_path / "adapter1"], [1, 1], tmp_path / "sum")


def test_large_models_are_saved_in_shards(tmp_path, base):
    folder = base()
    expected = train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")(IDS).logits
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged", max_shard_size="200KB")
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)


def test_a_difference_beyond_the_tolerance_leaves_nothing(tmp_path, base):
    folder = base()
    train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    with pytest.raises(ModelError, match=r"saving in bfloat16 changed a logit by .* of 0\.0001;"):
        merge_model(
            folder, tmp_path / "adapter", tmp_path / "merged", dtype="bfloat16", tolerance=1e-4
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_a_merge_that_loses_the_adapter_is_refused(tmp_path, base, monkeypatch):
    folder = base()
    train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    monkeypatch.setattr(Linear, "merge", lambda self, **_: None)
    with pytest.raises(ModelError, match="merging in float32 changed a logit"):
        merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_output_that_exists_or_holds_the_sources_is_refused(tmp_path, base):
    folder = base()
    train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists already"):
        merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    for output in (folder, tmp_path):
        with pytest.raises(ConfigError, match="is, or holds, what is merged"):
            merge_model(folder, tmp_path / "adapter", output, overwrite=True)
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "mine.txt").exists()


def test_arguments_that_cannot_work_are_listed_by_name(tmp_path, base):
    with pytest.raises(ConfigError, match=r"no argument 'wieghts'\. Did you mean 'weights'"):
        merge_model(base(), "a", tmp_path / "out", wieghts=[1])
    with pytest.raises(ConfigError, match="2 weights for 1 adapters"):
        merge_model(base(), "a", tmp_path / "out", weights=[1, 2])
    with pytest.raises(ConfigError, match="dtype='int8' must be 'auto', 'float32'"):
        merge_model(base(), "a", tmp_path / "out", dtype="int8")
    with pytest.raises(MissingFileError, match="adapter folder 'a' does not exist"):
        merge_model(base(), "a", tmp_path / "out")


def test_the_command_prints_the_largest_difference(tmp_path, base, capsys):
    folder = base()
    train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    output = tmp_path / "merged"
    main([str(folder), "--peft_path", str(tmp_path / "adapter"), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "merged in float32, against the adapter" in printed
    assert "same likeliest token                     100.00%" in printed
    main([str(folder), "--peft_path", str(tmp_path / "adapter"), "--output", str(output),
          "--weights", "0.0001", "--dtype", "bfloat16", "--overwrite"])  # fmt: skip
    assert "Rounding changes as much as the adapter does" in capsys.readouterr().out


QUANTIZED = {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}


@pytest.mark.parametrize("bits", QUANTIZED)
def test_a_quantised_base_is_dequantised_before_merging(tmp_path, base, bits):
    pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
    folder = base()
    model: Any = train(
        load_model(folder, quantization=bits, device="cpu"), VARIANTS["plain"], tmp_path / "adapter"
    )
    assert (
        type(model.base_model.model.model.layers[0].mlp.up_proj.base_layer).__name__
        == (QUANTIZED[bits])
    )
    expected = model(IDS).logits
    report = merge_model(folder, tmp_path / "adapter", tmp_path / "merged", quantization=bits)
    assert report.merged < 1e-5
    torch.testing.assert_close(logits(tmp_path / "merged"), expected, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    # merged into the full base it is another model: by what quantising moved
    merge_model(folder, tmp_path / "adapter", tmp_path / "full")
    assert (logits(tmp_path / "full") - expected).abs().max() > 1e-3


def test_a_base_stored_in_four_bits_is_recognised(tmp_path, base):
    pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
    folder = base()
    small = load_model(folder, quantization="4bit", device="cpu")
    small.save_pretrained(tmp_path / "small")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "small")
    model = train(small, VARIANTS["plain"], tmp_path / "adapter")
    merge_model(tmp_path / "small", tmp_path / "adapter", tmp_path / "merged")
    torch.testing.assert_close(logits(tmp_path / "merged"), model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_real_model_answers_alike_adapted_and_merged(tmp_path, small_model_path):
    torch.manual_seed(0)
    model = add_adapter(load_model(small_model_path), LoraOptions(lora_r=8))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    save_adapter(model, tmp_path / "adapter")
    report = merge_model(small_model_path, tmp_path / "adapter", tmp_path / "merged")
    # measured: 1.5e-4 (and 0.04 saved as float16, 0.67 as bfloat16) at an effect of 4.7
    assert report.saved < 1e-3 < report.effect
    queries = ["What is the capital of France?", "请用一句话介绍北京。"]
    adapted = Predictor(small_model_path, peft_path=tmp_path / "adapter")
    expected = adapted(queries, max_new_tokens=24)
    assert Predictor(tmp_path / "merged")(queries, max_new_tokens=24) == expected


def test_a_greedy_generation_configuration_with_a_temperature_is_mended_and_told(
    tmp_path, base, caplog
):
    folder = base()
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    train(load_model(folder), VARIANTS["plain"], tmp_path / "adapter")
    merge_model(folder, tmp_path / "adapter", tmp_path / "merged")
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written.get("temperature") in (None, 1.0)
    assert "without effect: temperature, top_p" in caplog.text
