"""Adapters: what is trained, and that a saved one is the same function on the original base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from main.errors import ConfigError, MissingFileError, ModelError
from main.models import LoraOptions, add_adapter, load_adapter, load_model, save_adapter

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
IDS = torch.arange(1, 13).reshape(2, 6)


def tiny(tied: bool = False, dtype: torch.dtype = torch.float32, **sizes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**(SIZES | sizes), tie_word_embeddings=tied)
    model: Any = LlamaForCausalLM(config)  # transformers wraps .to(), which loses its type
    return model.to(dtype).eval()


def trained(options: LoraOptions, **base) -> PeftModel:
    """An adapter moved by three large steps, so that every part of it differs from its start."""
    model = add_adapter(tiny(**base), options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


VARIANTS = {
    "plain": LoraOptions(lora_r=4, lora_alpha=8),
    "dora": LoraOptions(lora_r=4, lora_alpha=8, use_dora=True),
    "rslora": LoraOptions(lora_r=4, lora_alpha=8, use_rslora=True),
    "pissa": LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights="pissa"),
    "pissa_niter": LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights="pissa_niter_4"),
    "pissa_rslora": LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights="pissa", use_rslora=True),
    "pissa_dora": LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights="pissa", use_dora=True),
    "olora": LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights="olora"),
    "modules": LoraOptions(lora_r=4, lora_alpha=8, modules_to_save=["lm_head"]),
    "embedding": LoraOptions(lora_r=4, lora_alpha=8, modules_to_save=["embed_tokens"]),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_saved_adapter_is_the_same_function_on_the_original_base(tmp_path, name, tied):
    model = trained(VARIANTS[name], tied=tied)
    expected = model(IDS).logits
    save_adapter(model, tmp_path)
    base = tiny(tied=tied)
    distance = (base(IDS).logits - expected).abs().max()
    assert distance > 0.01  # training did change the function
    for again in (
        load_adapter(base, tmp_path),
        PeftModel.from_pretrained(tiny(tied=tied), tmp_path),
    ):
        torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "dora", "modules"])
def test_reloading_is_bit_equal_where_the_base_is_untouched(tmp_path, name):
    model = trained(VARIANTS[name])
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(tiny(), tmp_path)(IDS).logits, model(IDS).logits)


def test_a_new_adapter_is_the_base_function_and_only_it_is_trained_in_float32():
    base = tiny(dtype=torch.bfloat16)
    expected = base(IDS).logits
    model = add_adapter(base, LoraOptions(lora_r=4))
    assert torch.equal(model(IDS).logits, expected)
    # 2 layers x 7 linear layers x (A, B)
    training = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(training) == 28
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in training.items())
    assert not any("lm_head" in name for name in training)


def test_training_moves_every_adapter_weight_and_no_base_weight():
    before = {k: v.clone() for k, v in tiny().state_dict().items()}
    model = trained(LoraOptions(lora_r=4))
    start = add_adapter(tiny(), LoraOptions(lora_r=4)).state_dict()
    for name, weight in model.state_dict().items():
        if "lora_" in name:
            assert not torch.equal(weight, start[name]), name
        else:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(weight, before[plain]), name


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_adapter_trains_exactly_its_own_weights_in_float32(tmp_path, name):
    save_adapter(trained(VARIANTS[name], dtype=torch.bfloat16), tmp_path)
    model = load_adapter(tiny(dtype=torch.bfloat16), tmp_path, trainable=True)
    training = [p for p in model.parameters() if p.requires_grad]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(p.numel() for p in training) == sum(t.numel() for t in stored.values())
    assert {p.dtype for p in training} == {torch.float32}
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in training)


def test_a_frozen_adapter_trains_nothing(tmp_path):
    save_adapter(trained(VARIANTS["modules"]), tmp_path)
    model = load_adapter(tiny(), tmp_path)
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training


def test_a_module_trained_whole_runs_on_a_half_precision_base(tmp_path):
    model = trained(VARIANTS["modules"], dtype=torch.bfloat16)
    save_adapter(model, tmp_path)
    logits = load_adapter(tiny(dtype=torch.bfloat16), tmp_path)(IDS).logits
    torch.testing.assert_close(logits.float(), model(IDS).logits.float(), rtol=0.05, atol=0.05)


def test_an_adapter_file_has_the_base_class_so_that_another_base_is_recognised(tmp_path):
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    other = MistralForCausalLM(MistralConfig(**SIZES))
    with pytest.raises(ModelError, match=r"MistralForCausalLM .* trained on LlamaForCausalLM"):
        load_adapter(other, tmp_path)


def test_an_adapter_of_another_size_names_both_shapes(tmp_path):
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    other = tiny(hidden_size=64)
    # r = 4 on inputs of 32 here, 64 there
    with pytest.raises(ModelError, match=r"of another shape.*\(4, 32\) in the file and \(4, 64\)"):
        load_adapter(other, tmp_path)
    assert not any("lora_" in name for name, _ in other.named_modules())


@pytest.mark.parametrize(
    ("layers", "message"),
    [(3, r"14 tensors are missing, e\.g\. '.*layers\.2"), (1, r"14 tensors have no place")],
)
def test_an_adapter_of_another_depth_says_what_is_missing_or_left(tmp_path, layers, message):
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    with pytest.raises(ModelError, match=message):  # 7 linear layers x (A, B) a layer
        load_adapter(tiny(num_hidden_layers=layers), tmp_path)


def test_keys_with_a_wrapper_prefix_are_an_error_and_not_nothing(tmp_path):
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file({f"module.{k}": v for k, v in load_file(path).items()}, path)
    with pytest.raises(ModelError, match=r"28 tensors are missing.*28 tensors have no place"):
        load_adapter(tiny(), tmp_path)


def test_an_adapter_for_layers_that_the_base_lacks_is_refused(tmp_path):
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_modules": ["query_key_value"]}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"does not fit LlamaForCausalLM.*query_key_value"):
        load_adapter(tiny(), tmp_path)


def test_folders_that_are_no_adapter_say_so(tmp_path):
    with pytest.raises(MissingFileError, match=r"adapter folder '.*gone' does not exist"):
        load_adapter(tiny(), tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(MissingFileError, match=r"has no adapter_config\.json.*notes\.txt"):
        load_adapter(tiny(), tmp_path)
    save_adapter(trained(VARIANTS["plain"]), tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="are damaged"):
        load_adapter(tiny(), tmp_path)
    weights.unlink()
    with pytest.raises(MissingFileError, match=r"has no weights: looked for adapter_model"):
        load_adapter(tiny(), tmp_path)


def test_an_adapter_is_never_stacked_on_another(tmp_path):
    model = trained(VARIANTS["plain"])
    save_adapter(model, tmp_path)
    for add in (lambda m: add_adapter(m, LoraOptions()), lambda m: load_adapter(m, tmp_path)):
        for adapted in (model, model.get_base_model()):
            with pytest.raises(ModelError, match="carries an adapter already"):
                add(adapted)


def test_unknown_target_modules_list_the_linear_layers():
    with pytest.raises(
        ModelError, match=r"no module \['q_prj'\]\. Did you mean 'q_proj'\?.*up_proj"
    ):
        add_adapter(tiny(), LoraOptions(target_modules=["q_prj", "v_proj"]))
    with pytest.raises(ModelError, match=r"'.*qq\$' matches no module.*down_proj"):
        add_adapter(tiny(), LoraOptions(target_modules=".*qq$"))
    with pytest.raises(ModelError, match=r"modules_to_save: .* no module \['score'\]"):
        add_adapter(tiny(), LoraOptions(modules_to_save=["score"]))


@pytest.mark.parametrize("targets", ["q_proj", ["q_proj"], r".*\.q_proj"])
def test_target_modules_may_be_a_name_a_list_or_a_pattern(targets):
    model = add_adapter(tiny(), LoraOptions(target_modules=targets))
    assert sum(p.requires_grad for p in model.parameters()) == 4  # 2 layers x (A, B)


def test_all_linear_is_saved_as_layer_names_without_the_output_layer(tmp_path):
    save_adapter(add_adapter(tiny(), LoraOptions()), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert config["target_modules"] == layers


def test_values_that_cannot_work_are_listed_at_once():
    options = LoraOptions(lora_r=0, lora_dropout=1.0, init_lora_weights="pisa")
    with pytest.raises(ConfigError, match=r"(?s)3 problems.*lora_r=0.*lora_dropout=1\.0.*'pisa'"):
        add_adapter(tiny(), options)


def test_pissa_on_a_quantized_base_is_refused(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
    tiny().save_pretrained(tmp_path)
    model = load_model(tmp_path, quantization="4bit", device="cpu")
    with pytest.raises(ModelError, match="rewrites the base weights, which are quantized"):
        add_adapter(model, VARIANTS["pissa"])


def test_an_adapter_on_a_four_bit_base_trains_and_reloads(tmp_path):
    pytest.importorskip("bitsandbytes", reason="the qlora extra is optional")
    tiny(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
    load = lambda: load_model(tmp_path / "base", quantization="4bit", device="cpu")  # noqa: E731
    model = add_adapter(load(), LoraOptions(lora_r=4, init_lora_weights=False))
    model(IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    save_adapter(model, tmp_path / "adapter")
    with torch.no_grad():
        again = load_adapter(load(), tmp_path / "adapter")(IDS).logits
        # bitsandbytes answers in bfloat16 once it has packed its weights for a CPU
        torch.testing.assert_close(again, model(IDS).logits, rtol=0.02, atol=0.005)
        assert (load()(IDS).logits - again).abs().max() > 0.05


def test_a_gathered_state_dict_is_saved_and_a_broken_one_refused(tmp_path):
    model = trained(VARIANTS["plain"])
    state = model.state_dict()
    save_adapter(model, tmp_path, state_dict=state)
    assert torch.equal(load_adapter(tiny(), tmp_path)(IDS).logits, model(IDS).logits)
    some = next(name for name in state if "lora_A" in name)
    with pytest.raises(ModelError, match="1 tensors are empty"):
        save_adapter(model, tmp_path, state_dict=state | {some: torch.empty(0)})
    with pytest.raises(ModelError, match="28 tensors are missing"):
        save_adapter(model, tmp_path, state_dict={f"module.{k}": v for k, v in state.items()})


def test_a_wrapped_model_is_saved_under_the_plain_names(tmp_path: Path):
    model = trained(VARIANTS["plain"])
    save_adapter(torch.nn.DataParallel(model), tmp_path)  # type: ignore[arg-type]
    assert all(
        k.startswith("base_model.") for k in load_file(tmp_path / "adapter_model.safetensors")
    )


def test_the_mode_of_the_base_is_kept():
    assert not add_adapter(tiny(), LoraOptions(lora_dropout=0.5)).training
    assert add_adapter(tiny().train(), LoraOptions(lora_dropout=0.5)).training
