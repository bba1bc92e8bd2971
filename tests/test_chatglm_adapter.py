"""LoRA adapters of ChatGLM's original code on our model: the same as merging them there."""

from pathlib import Path

import pytest
import torch
from chatglm_checkpoints import (
    ALPHA,
    CONFIG,
    MODULES,
    PREFIX,
    RANK,
    write_adapter,
    write_checkpoint,
)
from safetensors.torch import load_file, save_file

from main.errors import ModelError
from main.models import load_adapter, load_model, save_adapter
from main.predictor.hf import Predictor

IDS = torch.tensor([[1, 260, 7, 300, 45, 270, 99, 2], [5, 6, 7, 8, 9, 10, 11, 12]])


def merged_there(folder: Path, base: Path, scale: float) -> Path:
    """The original checkpoint with W + s B A in its own fused layers; m (W + s B A) / |W + s B A|
    by rows where there are magnitudes (DoRA, arXiv 2402.09353, equation 5)."""
    weights = load_file(base / "model.safetensors")
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        place = name.removesuffix(".lora_A.weight")
        layer = place.removeprefix(PREFIX) + ".weight"
        moved = weights[layer] + scale * tensors[f"{place}.lora_B.weight"] @ tensors[name]
        if f"{place}.lora_magnitude_vector" in tensors:
            moved *= (tensors[f"{place}.lora_magnitude_vector"] / moved.norm(dim=1))[:, None]
        weights[layer] = moved
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    return base


@torch.no_grad()
@pytest.mark.parametrize("kind", ["chatglm2", "chatglm3", "glm4"])
@pytest.mark.parametrize(
    ("targets", "magnitudes", "options", "scale"),
    [
        (["query_key_value"], False, {}, ALPHA / RANK),
        ([*MODULES, "output_layer"], False, {"use_rslora": True}, ALPHA / RANK**0.5),
        (MODULES, True, {}, ALPHA / RANK),
    ],
    ids=["qkv", "all, rslora", "all, dora"],
)
def test_logits_are_those_of_the_weights_merged_under_their_original_names(
    tmp_path, kind, targets, magnitudes, options, scale
):
    adapter = write_adapter(tmp_path / "adapter", targets, magnitudes, **options)
    base = write_checkpoint(tmp_path / kind, kind)
    plain = load_model(base)(IDS).logits
    adapted = load_adapter(load_model(base), adapter)(IDS).logits
    expected = load_model(merged_there(adapter, base, scale))(IDS).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, expected, rtol=0, atol=1e-5)


def test_it_answers_is_trained_on_and_saved_under_the_new_names(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    base = write_checkpoint(tmp_path / "chatglm3")
    answer = Predictor(base, peft_path=adapter)("你好", max_new_tokens=8)
    assert answer != Predictor(base)("你好", max_new_tokens=8)
    model = load_adapter(load_model(base), adapter, trainable=True)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 6 * CONFIG["num_layers"]
    save_adapter(model, tmp_path / "saved")
    assert Predictor(base, peft_path=tmp_path / "saved")("你好", max_new_tokens=8) == answer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank_pattern": {"dense": 2}}, "ranks or scales of single layers"),
        ({"init_lora_weights": "pissa"}, "a base changed by init_lora_weights='pissa'"),
    ],
)
def test_what_glm_cannot_follow_is_refused(tmp_path, options, message):
    adapter = write_adapter(tmp_path / "adapter", MODULES, **options)
    with pytest.raises(ModelError, match=rf"{message}.*Merge it into its base with that code"):
        load_adapter(load_model(write_checkpoint(tmp_path / "base")), adapter)


def test_whole_modules_and_rows_of_another_checkpoint_are_refused(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", MODULES)
    model = load_model(write_checkpoint(tmp_path / "base", multi_query_group_num=1))
    with pytest.raises(ModelError, match=r"lora_B.weight' has 64 rows; .* 32 \+ 8 \+ 8"):
        load_adapter(model, adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    tensors[f"{PREFIX}transformer.output_layer.weight"] = torch.zeros(2, 2)
    save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="tensors other than LoRA's"):
        load_adapter(model, adapter)
