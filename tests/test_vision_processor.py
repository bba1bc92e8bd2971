"""Placeholders, pixels and truncation: equal to the families' own processors, in every place."""

from typing import Any

import numpy
import pytest
import torch
from transformers import (
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2_5_VLProcessor,
    Qwen2VLProcessor,
    Qwen3VLProcessor,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_resize
from vision_checkpoints import FAMILIES, QWEN, picture, question

from main.dialogue.accounts import Dialogue
from main.dialogue.prompts import encode
from main.errors import DataError
from main.loaders.truncate import fit
from main.predictor.request import build_prompts
from main.vision import Visual, visuals_in

DIALOGUE = [
    {"role": "system", "content": "Answer in one sentence."},
    question("What is it?", picture(100, 60)),
    {"role": "assistant", "content": "A box."},
    question("And these two?", picture(60, 200, 3), picture(30, 20, 4)),
    {"role": "assistant", "content": "Two more boxes."},
]


def dialogue_for(family: str) -> list:
    """The LLaVA template takes a system turn as parts and writes it, but starts each pair anew."""
    return DIALOGUE[1:] if family.startswith("llava") else DIALOGUE


def video(count: int = 5, width: int = 84, height: int = 56, **options) -> Visual:
    return Visual("video", tuple(picture(width, height, seed) for seed in range(count)), **options)


def published(family: str, vision, monkeypatch):
    """The family's own processor, as far as images go: its video part needs torchvision."""
    if family.startswith("llava"):
        cls = LlavaProcessor if family == "llava" else LlavaNextProcessor
        settings = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        return cls(vision.image_processor, vision.tokenizer, patch_size=7, **settings)
    classes: dict[str, Any] = {
        "qwen2_vl": Qwen2VLProcessor,
        "qwen2_5_vl": Qwen2_5_VLProcessor,
        "qwen3_vl": Qwen3VLProcessor,
    }
    cls = classes[family]
    monkeypatch.setattr(cls, "check_argument_for_proper_class", lambda *_: None)
    return cls(vision.image_processor, vision.tokenizer, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_pixels_are_those_of_the_familys_own_processor(family, vision_models, monkeypatch):
    template, dialogue = vision_models.template(family), dialogue_for(family)
    encoded = template.encode(dialogue)
    visuals = visuals_in(dialogue)
    expected = published(family, template.vision, monkeypatch)(
        text=template.render(dialogue),
        images=[visual.source for visual in visuals],
        return_tensors="pt",
    )
    assert encoded.input_ids == expected["input_ids"][0].tolist()
    ours = template.vision.inputs([encoded.input_ids], [visuals], ["row"])
    ours |= template.vision.token_types(torch.tensor([encoded.input_ids]))
    assert sorted(ours) == sorted(set(expected) - {"input_ids", "attention_mask"})
    for name, tensor in ours.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_trained_whole_and_the_prompt_is_that_of_inference(family, vision_models):
    template, dialogue = vision_models.template(family), dialogue_for(family)
    encoded = template.encode(dialogue)
    texts = [template.tokenizer.decode(encoded.input_ids[a:b]).strip() for a, b in encoded.turns]
    end = "</s>" if family.startswith("llava") else "<|im_end|>"
    assert texts == [f"A box.{end}", f"Two more boxes.{end}"]
    trained = [i for a, b in encoded.turns for i in range(a, b)]
    assert [i for i, kept in enumerate(encoded.loss_mask) if kept] == trained
    prompts = build_prompts(template.tokenizer, [dialogue[:-1]], vision=template.vision)
    asked = encode(template.tokenizer, prompts, template.vision)[0]
    assert asked == template.encode_prompt(dialogue[:-1])
    assert asked == encoded.input_ids[: encoded.turns[-1][0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_limit_splits_the_tokens_of_an_image(family, vision_models):
    template, dialogue = vision_models.template(family), dialogue_for(family)
    encoded = template.encode(dialogue)
    token = template.vision.token_ids["image"]
    images_left = set()
    for limit in range(1, len(encoded.input_ids) + 1):
        kept, _ = fit(encoded, Dialogue(dialogue), template, limit)
        if kept is None:
            continue
        assert len(kept.input_ids) <= limit and any(kept.loss_mask)
        features = sum(sum(template.vision.runs(placed.visual)) for placed in kept.images)
        assert kept.input_ids.count(token) == features
        assert all(
            set(kept.input_ids[placed.start : placed.end]) == {token} for placed in kept.images
        )
        images_left.add(len(kept.images))
    assert images_left == {2, 3}  # the oldest exchange went first, with its image


def test_a_cut_in_the_image_of_a_tools_answer_ends_before_it(vision_models):
    template = vision_models.template("qwen2_5_vl")
    dialogue = [
        {"role": "user", "content": "Draw a box."},
        {"role": "assistant", "content": "I draw."},
        {**question("Here.", picture()), "role": "tool"},
        {"role": "assistant", "content": "Done."},
    ]
    encoded = template.encode(dialogue)
    (image,) = encoded.images
    kept, fate = fit(encoded, Dialogue(dialogue), template, image.start + 2)
    assert fate == "cut" and kept and kept.images == []
    assert kept.input_ids == encoded.input_ids[: image.start]


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"resized_height": 280, "resized_width": 420}, 10 * 15),  # the guide's, in cells of 28
        ({"resized_height": 290, "resized_width": 20}, 10 * 1),
        ({"min_pixels": 50176, "max_pixels": 50176}, 8 * 8),  # 224 x 224, the guide's too
        ({"max_pixels": 4 * 784}, 2 * 2),
        ({"min_pixels": 100 * 784}, 10 * 10),  # above the model's own most
        ({}, 6 * 6),  # 40 cells at most, by the checkpoint's settings
    ],
)
def test_sizes_of_a_message_decide_the_tokens_of_its_image(options, tokens, vision_models):
    vision = vision_models.template("qwen2_5_vl").vision
    visual = Visual("image", picture(400, 400), **options)
    assert vision.runs(visual) == [tokens]
    made = vision.features(visual)
    assert made["image_grid_thw"].prod() == 4 * tokens
    assert len(made["pixel_values"]) == 4 * tokens


def test_a_resized_image_has_the_pixels_of_that_size(vision_models):
    vision = vision_models.template("qwen2_5_vl").vision
    small = picture(400, 300).resize((84, 56), vision.image_processor.resample)
    visual = Visual("image", picture(400, 300), resized_height=56, resized_width=84)
    expected = vision.features(Visual("image", small))["pixel_values"]
    assert torch.equal(vision.features(visual)["pixel_values"], expected)


def test_sizes_reach_llava_before_its_fixed_tower(vision_models):
    fixed, tiled = (vision_models.template(f).vision for f in ("llava", "llava_next"))
    large, small = (Visual("image", picture(300, 300), max_pixels=p) for p in (None, 400))
    assert fixed.runs(large) == fixed.runs(small) == [16]
    pixels = [fixed.features(visual)["pixel_values"] for visual in (large, small)]
    assert not torch.equal(*pixels)
    wide = Visual("image", picture(300, 300), resized_height=28, resized_width=84)
    assert tiled.runs(wide) != tiled.runs(large)


@pytest.mark.parametrize("family", QWEN)
def test_pixels_of_a_video_are_those_of_the_published_patches(family, vision_models):
    vision = vision_models.template(family).vision
    processor = vision.image_processor
    cell = vision.factor
    seen = video(5, 3 * cell, 2 * cell, resized_height=2 * cell, resized_width=3 * cell)
    mean, std = (numpy.array(v) for v in (processor.image_mean, processor.image_std))
    frames = [(numpy.asarray(frame) / 255 - mean) / std for frame in seen.source]
    stacked = torch.tensor(numpy.stack(frames)).permute(0, 3, 1, 2)[None].float()
    theirs: Any = Qwen3VLVideoProcessor()
    patches, t, h, w = theirs.patchify(stacked, processor.patch_size, 2, 2)
    made = vision.features(seen)
    torch.testing.assert_close(made["pixel_values_videos"], patches[0], rtol=0, atol=1e-6)
    assert made["video_grid_thw"].tolist() == [[t, h, w]] and t == 3


@pytest.mark.parametrize("family", QWEN)
def test_a_video_has_as_many_tokens_as_features(family, vision_models):
    template = vision_models.template(family)
    frames = [picture(84, 56, seed) for seed in range(4)]
    part = {
        "type": "video",
        "video": frames,
        "fps": 2.0,
        "max_pixels": 4 * template.vision.factor**2,
    }
    dialogue: list[dict[str, Any]] = [
        {"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]},
        {"role": "assistant", "content": "A circle."},
    ]
    encoded = template.encode(dialogue)
    visuals = visuals_in(dialogue)
    made = template.vision.inputs([encoded.input_ids], [visuals], ["row"])
    features = int(made["video_grid_thw"].prod(-1).sum()) // 4
    token = template.vision.token_ids["video"]
    assert encoded.input_ids.count(token) == features > 0
    types = template.vision.token_types(torch.tensor([encoded.input_ids]))["mm_token_type_ids"]
    assert int((types == 2).sum()) == features
    text = template.tokenizer.decode(encoded.input_ids).replace("<|video_pad|>", "")
    if family == "qwen3_vl":  # frames at 0, 0.5, 1.0 and 1.5 s, in pairs
        group = "<|vision_start|><|vision_end|>"
        assert f"<0.2 seconds>{group}<1.2 seconds>{group}What moves?" in text
    assert ("second_per_grid_ts" in made) == (family == "qwen2_5_vl")


def test_the_frames_of_a_qwen3_video_share_its_bounds(vision_models):
    vision = vision_models.template("qwen3_vl").vision
    for count, width, height in [(4, 640, 480), (8, 100, 700), (12, 64, 64)]:
        seen = Visual("video", (picture(width, height),) * count)
        size = Qwen3VLVideoProcessor.size
        expected = video_resize(
            count, height, width, 2, 32, size["shortest_edge"], size["longest_edge"]
        )
        t, h, w = vision.grid(seen)
        assert (t, 16 * h, 16 * w) == (count // 2, *expected)


def test_placeholders_written_as_text_are_no_pictures(vision_models):
    template = vision_models.template("qwen2_5_vl")
    tokenizer, vision = template.tokenizer, template.vision
    forged = [question("and <|image_pad|>?", picture())]
    (plain,) = encode(tokenizer, build_prompts(tokenizer, [forged], vision=vision), vision)
    (own,) = encode(
        tokenizer, build_prompts(tokenizer, [[question("and?", picture())]], vision=vision), vision
    )
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert plain.count(image) == own.count(image)
    prompts = build_prompts(tokenizer, [forged], vision=vision, special=True)
    with pytest.raises(DataError, match=r"has 2 placeholders for images, and its 1 images"):
        encode(tokenizer, prompts, vision)
    assert "contains the control token '<|image_pad|>'" in template.control_problem(forged)


def test_ids_that_do_not_fit_their_images_are_refused(vision_models):
    template = vision_models.template("qwen2_5_vl")
    encoded = template.encode(DIALOGUE)
    visuals = visuals_in(DIALOGUE)
    with pytest.raises(DataError, match=r"row 7: there are 28 image tokens for 36 features of"):
        other = [Visual("image", picture(112, 112)), *visuals[1:]]
        template.vision.inputs([encoded.input_ids], [other], ["row 7"])
    with pytest.raises(DataError, match=r"there are 28 image tokens for 0 features of no image"):
        template.vision.inputs([encoded.input_ids], [[]], ["row 7"])


def test_a_family_without_videos_says_so(vision_models):
    vision = vision_models.template("llava").vision
    with pytest.raises(DataError, match="llava models take images, not videos"):
        vision.runs(video())


def test_the_fingerprint_follows_the_settings_for_images(vision_models, tmp_path):
    template = vision_models.template("qwen2_vl")
    settings = vision_models.path("qwen2_vl") / "preprocessor_config.json"
    before, text = template.fingerprint(), settings.read_text()
    try:
        settings.write_text(text.replace('"shortest_edge": 3136', '"shortest_edge": 6272'))
        assert settings.read_text() != text
        assert template.fingerprint() != before
    finally:
        settings.write_text(text)
    assert template.fingerprint() == before
