"""A merged vision-language model sees pictures as the adapted one did."""

import pytest
import torch
from vision_checkpoints import picture, question

from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.predictor.hf import Predictor
from main.utils.merge_model import merge_model
from main.vision import Visual

QUERIES = [question("What is it?", picture(84, 56, 1)), question("她是谁?", picture(60, 90, 2))]
TOKENS = 8


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_the_merged_folder_opens_with_images_and_answers_as_the_adapter(
    name, vision_models, tmp_path
):
    base = vision_models.path(name)
    torch.manual_seed(2)
    options = LoraOptions(lora_r=4, lora_alpha=8, init_lora_weights=False)
    save_adapter(add_adapter(load_model(base, device="cpu"), options), tmp_path / "adapter")
    adapted = Predictor(base, tmp_path / "adapter", device="cpu")
    expected = adapted(QUERIES, max_new_tokens=TOKENS)
    assert expected != vision_models.predictor(name)(QUERIES, max_new_tokens=TOKENS)
    report = merge_model(base, tmp_path / "adapter", tmp_path / "merged")
    assert report.saved < 1e-3 < report.effect
    merged = Predictor(tmp_path / "merged", device="cpu")
    assert merged(QUERIES, max_new_tokens=TOKENS) == expected
    pixels = [
        predictor.vision.features(Visual("image", picture(300, 200, 3)))
        for predictor in (adapted, merged)
    ]
    assert all(torch.equal(pixels[0][key], pixels[1][key]) for key in pixels[0])
