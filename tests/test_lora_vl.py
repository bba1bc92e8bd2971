"""SFT on rows with images: the loss of plain transformers, frozen towers, clear errors."""

import json
from pathlib import Path
from typing import cast

import pytest
import torch
from gradients import gradient
from PIL import Image
from vision_checkpoints import FAMILIES, QWEN, question, saved, write_rows

from main.dialogue.template import ChatTemplate
from main.errors import DataError
from main.predictor.hf import Predictor
from main.trainer.lora import Trainer
from main.vision import VisionProcessor

pytestmark = pytest.mark.usefixtures("own_folder")


def answer(text: str) -> dict:
    return {"role": "assistant", "content": text}


def mixed_rows(folder: Path) -> list:
    """Images of unlike sizes, several in a row, none, and a dialogue of two exchanges."""
    paths = [
        saved(folder / "images", f"{i}.png", width=w, height=h, seed=i)
        for i, (w, h) in enumerate([(84, 56), (200, 100), (60, 90), (28, 280)])
    ]
    return [
        [question("What is it?", "images/0.png"), answer("A box.")],
        [{"role": "user", "content": "Say hello."}, answer("Hello to you.")],
        [question("Which?", *paths[1:3]), answer("The second.")],
        [question("And?", paths[3]), answer("Tall."), question("Sure?"), answer("Yes.")],
    ]


def make_trainer(vision_models, family: str, rows: list, **changes) -> Trainer:
    data = {"train": write_rows(Path("train.jsonl"), rows)}
    arguments = {
        "from_pretrained": vision_models.path(family),
        "tokenizer": vision_models.template(family).tokenizer,
        "data_path": data,
        "max_length": 512,
        "batch_size": 4,
        "lora_r": 4,
        "task_name": "pictures",
    }
    return Trainer(**(arguments | changes))


def reference_loss(trainer: Trainer, dialogues: list) -> torch.Tensor:
    """Plain transformers, one row at a time, with pixels straight from the processor."""
    total, count = torch.zeros(()), 0
    template, vision = cast(ChatTemplate, trainer.template), cast(VisionProcessor, trainer.vision)
    for messages in dialogues:
        encoded = template.encode(messages)
        parts = [p for m in messages if isinstance(m["content"], list) for p in m["content"]]
        images = [picture_of(part["image"]) for part in parts if part["type"] == "image"]
        pixels = vision.image_processor(images, return_tensors="pt") if images else {}
        ids = torch.tensor([encoded.input_ids])
        kinds = vision.token_types(ids) if images else {}
        logits = trainer.policy(input_ids=ids, **pixels, **kinds).logits[0, :-1].float()
        trained = torch.tensor(encoded.loss_mask)[1:]
        target = ids[0, 1:][trained]
        total = total + torch.nn.functional.cross_entropy(logits[trained], target, reduction="sum")
        count += len(target)
    return total / count


def picture_of(path: str):
    return Image.open(path).convert("RGB")


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_plain_transformers_one_row_at_a_time(
    family, vision_models, tmp_path
):
    rows = mixed_rows(tmp_path)
    trainer = make_trainer(vision_models, family, rows)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    task = trainer.task()
    batch = task.collate([trainer.train_data[i] for i in range(4)])
    task.loss(batch.tensors, batch.counts).loss.backward()
    ours = {name: gradient(parameter).clone() for name, parameter in trained.items()}
    trainer.model.zero_grad(set_to_none=True)
    loss = reference_loss(trainer, rows)
    loss.backward()
    found = task.loss(batch.tensors, batch.counts).loss.item()
    assert found == pytest.approx(loss.item(), rel=1e-5)
    scale = max(float(gradient(parameter).abs().max()) for parameter in trained.values())
    for name, parameter in trained.items():
        error = float((ours[name] - gradient(parameter)).abs().max())
        assert error <= 1e-5 * scale, name


@pytest.mark.parametrize("family", QWEN)
def test_a_video_is_trained_on_as_it_is_predicted_from(family, vision_models, tmp_path):
    frames = [saved(tmp_path, f"{i}.png", width=56, height=56, seed=i) for i in range(3)]
    part = {"type": "video", "video": frames, "max_pixels": 4096}
    asked = {"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]}
    trainer = make_trainer(vision_models, family, [[asked, answer("A circle.")]])
    row = trainer.train_data[0]
    (prompt, *_), _ = vision_models.predictor(family)._prepare(asked, None, 4, {})
    assert row["input_ids"][: len(prompt.prompt_ids)] == prompt.prompt_ids
    task = trainer.task()
    batch = task.collate([row])
    ids = torch.tensor([prompt.prompt_ids])
    vision = cast(VisionProcessor, trainer.vision)
    made = vision.inputs([prompt.prompt_ids], [prompt.visuals], [""])
    for name, tensor in made.items():
        assert torch.equal(batch.tensors[name], tensor)
    # positions that the model finds in training are those that the predictor passes
    place = trainer.causal_lm.base_model
    tensors = {k: v for k, v in batch.tensors.items() if "pixel" not in k and k != "loss_mask"}
    found, _ = place.get_rope_index(**tensors)
    ours = vision.positions(trainer.causal_lm, ids, torch.ones_like(ids), prompt.visuals)
    assert ours is not None and torch.equal(found[:, :, : ids.shape[1]], ours)
    assert task.loss(batch.tensors, batch.counts).loss.isfinite()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_on_the_language_model_and_the_tower_stays_frozen(family, vision_models):
    rows = [[{"role": "user", "content": "Hi"}, answer("Hello.")]]
    trainer = make_trainer(vision_models, family, rows)
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all(".language_model." in name for name in trained)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_named_layers_of_the_tower_can_be_trained(vision_models, tmp_path):
    rows = mixed_rows(tmp_path)
    trainer = make_trainer(
        vision_models, "qwen2_5_vl", rows, target_modules=r"model\.visual\.blocks\.\d\.attn\.qkv"
    )
    trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all(".visual." in name for name in trained)
    task = trainer.task()
    batch = task.collate([trainer.train_data[i] for i in range(4)])
    task.loss(batch.tensors, batch.counts).loss.backward()
    assert any(float(gradient(p).abs().max()) > 0 for p in trained.values())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
def test_a_model_learns_to_tell_pictures_apart_and_predicts_with_its_checkpoint(
    family, vision_models, tmp_path
):
    names = ["red", "green", "blue"]
    for name in names:
        Image.new("RGB", (56, 56), name).save(f"{name}.png")
    rows = [[question("Which colour?", f"{name}.png"), answer(name)] for name in names]
    trainer = make_trainer(vision_models, family, rows, batch_size=3, lora_r=16)
    results = list(trainer(num_epochs=40, lr=2e-2, save_strategy="no", report_to="none"))
    # 32 numbers a token cannot hold 151,669 tokens further apart: the floor is about 0.9 and 1.9
    assert results[-1].train["loss"] < 2 < 10 < results[0].train["loss"]
    trainer.save(tmp_path / "adapter")
    predictor = Predictor(vision_models.path(family), peft_path=tmp_path / "adapter", device="cpu")
    asked = [question("Which colour?", f"{name}.png") for name in names]
    assert [text.strip() for text in predictor(asked, max_new_tokens=4)] == names


def test_a_missing_image_is_reported_with_its_row(vision_models, tmp_path):
    rows = mixed_rows(tmp_path)
    rows[2][0] = question("Which?", "images/0.png", "images/gone.png")
    rows[3][0] = question("And?", __file__)
    with pytest.raises(DataError) as error:
        make_trainer(vision_models, "qwen2_5_vl", rows)
    message = str(error.value)
    assert "2 of 4 rows cannot be used" in message
    assert "line 3: 'conversations': image: 'images/gone.png' does not exist" in message
    assert "line 4:" in message and "is none of the image formats" in message


def test_an_image_that_changed_its_size_since_is_reported_with_its_row(vision_models, tmp_path):
    trainer = make_trainer(vision_models, "qwen2_5_vl", mixed_rows(tmp_path))
    saved(tmp_path / "images", "0.png", width=112, height=112)
    with pytest.raises(DataError, match=r"row 1: there are 6 image tokens for 16"):
        trainer.task().collate([trainer.train_data[0]])
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(DataError, match=r"row 1: '.*images/0.png' does not exist"):
        trainer.task().collate([trainer.train_data[0]])


def test_the_cache_holds_paths_and_no_pixels(vision_models, tmp_path):
    trainer = make_trainer(vision_models, "qwen2_5_vl", mixed_rows(tmp_path))
    column = [trainer.train_data[i]["images"] for i in range(4)]
    assert [len(json.loads(text)) if text else 0 for text in column] == [1, 0, 2, 1]
    assert json.loads(column[0])[0]["source"] == str(tmp_path / "images" / "0.png")
    (stored,) = (tmp_path / "cache" / "main").glob("*.arrow")
    assert stored.stat().st_size < 8000


def test_without_a_vision_model_rows_with_images_are_refused(vision_models, tmp_path):
    template = ChatTemplate(vision_models.template("qwen2_5_vl").tokenizer)
    with pytest.raises(DataError, match="takes text only, not a part of type 'image'"):
        template.encode(mixed_rows(tmp_path)[0])


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (question("?", "a.png", max_pixel=3), "has the unknown key 'max_pixel'"),
        ({**question("?", "a.png"), "role": "assistant"}, "give it text"),
    ],
)
def test_a_part_that_cannot_work_is_reported_with_its_place(message, problem, vision_models):
    rows = [[{"role": "user", "content": "Hi"}, answer("Ho"), message, answer("Well.")]]
    with pytest.raises(DataError, match=rf"conversations\[2\] .*{problem}"):
        make_trainer(vision_models, "qwen2_5_vl", rows)
