"""The HF predictor with pictures: tiny random checkpoints of the real architectures."""

import runpy
import sys

import pytest
import torch
from conftest import ROOT, script
from openai_server import speaking
from PIL import Image
from transformers import AutoModelForImageTextToText
from vision_checkpoints import FAMILIES, QWEN, picture, question, saved, write_rows

from main.errors import ConfigError, DataError, GenerationError, MissingExtraError, MissingFileError
from main.evaluation.items import read_items
from main.models import context_length, family, load_config, load_model
from main.predictor import states
from main.predictor.openai import Predictor as Served

# Unlike sizes, several images, none, a turned photo: prompts of unlike lengths in one batch.
QUERIES = [
    question("What is it?", picture(84, 56)),
    {"role": "user", "content": "Say hello."},
    question("Which of the two?", picture(200, 100, 1), picture(60, 90, 2)),
    question("她是谁?", picture(28, 280, 3)),
    question("And here? " * 20, picture(56, 56, 4)),
]
TOKENS = 8
# What their templates put between the prompt and the answer: no part of the answer.
LEADS = {"llava": " ", "llava_next": " "}

pytestmark = pytest.mark.usefixtures("own_folder")


def generated(predictor, message, lead: str) -> str:
    """The answer of plain `generate` to one message, with pixels straight from the processor."""
    vision = predictor.vision
    images = [part["image"] for part in message["content"] if "image" in part]
    rows, _ = predictor._prepare(message, None, TOKENS, {})
    ids = torch.tensor([rows[0].prompt_ids])
    pixels = vision.image_processor(images, return_tensors="pt") if images else {}
    answer = predictor.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        **pixels,
        **(vision.token_types(ids) if images else {}),
        do_sample=False,
        max_new_tokens=TOKENS,
    )[0, ids.shape[1] :]
    text = predictor.tokenizer.decode(answer, skip_special_tokens=True).rstrip("\ufffd")
    return text.removeprefix(lead)


@pytest.mark.parametrize("name", [*FAMILIES, "qwen3_vl_moe"])
def test_greedy_text_is_that_of_generate_alone_and_in_a_batch_of_mixed_sizes(name, vision_models):
    predictor = vision_models.predictor(name)
    expected = [generated(predictor, query, LEADS.get(name, "")) for query in QUERIES]
    assert len(set(expected)) == len(QUERIES)
    assert [predictor(query, max_new_tokens=TOKENS)[0] for query in QUERIES] == expected
    assert predictor(QUERIES, max_new_tokens=TOKENS) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_decides_the_answer(name, vision_models):
    predictor = vision_models.predictor(name)
    queries = [question("What is it?", picture(84, 56, seed)) for seed in (1, 2, 3)]
    assert len(set(predictor(queries, max_new_tokens=TOKENS))) == 3


def test_the_guides_snippets_run_as_written(vision_models, tmp_path):
    pred = vision_models.predictor("qwen2_5_vl")
    picture(300, 200).save("example.jpg")
    result = pred([{
        "role": "user",
        "content": [
            {"type": "image", "image": "./example.jpg"},
            {"type": "text", "text": "她是谁?"},
        ]
    }, {
        "role": "user",
        "content": [
            {"type": "image", "image": "./example.jpg"},
            {"type": "text", "text": "她有哪些著作?"},
        ]
    }], max_new_tokens=TOKENS)  # fmt: skip
    assert len(result) == 2 and all(isinstance(text, str) for text in result)
    for sizes, tokens in (
        ({"resized_height": 280, "resized_width": 420}, 150),
        ({"min_pixels": 50176, "max_pixels": 50176}, 6 * 9),  # 168 x 252: at most 50176
    ):
        messages = [question("Describe this image.", f"file://{tmp_path}/example.jpg", **sizes)]
        assert len(pred(messages, max_new_tokens=2)) == 1
        rows, _ = pred._prepare(messages, None, 2, {})
        assert rows[0].prompt_ids.count(pred.vision.token_ids["image"]) == tokens


@pytest.mark.parametrize("name", QWEN)
def test_a_video_is_its_frames_in_order(name, vision_models):
    predictor = vision_models.predictor(name)
    frames = [picture(56, 56, seed) for seed in range(4)]
    frames[0].save("a.gif", save_all=True, append_images=frames[1:], duration=500)
    for index, frame in enumerate(frames):
        frame.save(f"{index}.png")
    forward = [f"{index}.png" for index in range(4)]

    def asked(source):
        part = {"type": "video", "video": source, "max_pixels": 4096}
        return {"role": "user", "content": [part, {"type": "text", "text": "What moves?"}]}

    answers = predictor(
        [asked(forward), asked(forward[::-1]), asked(frames), question("What is it?", frames[0])],
        max_new_tokens=TOKENS,
    )
    assert answers[0] == answers[2] == predictor(asked(forward), max_new_tokens=TOKENS)[0]
    assert len(set(answers)) == 3
    assert len(predictor(asked("a.gif"), max_new_tokens=2)) == 1


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next"])
def test_a_batch_halved_for_want_of_memory_answers_the_same(name, vision_models, monkeypatch):
    predictor = vision_models.predictor(name)
    expected = predictor(QUERIES, max_new_tokens=TOKENS)
    step, calls = states.State.step, []

    def failing(self, rows):
        calls.append(len(rows))
        if len(rows) > 2 and len(calls) > 3:  # after some tokens: they are read in again
            raise torch.OutOfMemoryError("full")
        return step(self, rows)

    monkeypatch.setattr(states.State, "step", failing)
    assert predictor(QUERIES, max_new_tokens=TOKENS) == expected
    assert 5 in calls and 2 in calls


def test_a_stream_ends_as_the_call(vision_models):
    predictor = vision_models.predictor("qwen2_5_vl")
    *_, (_, texts) = predictor.predict_stream(QUERIES, max_new_tokens=TOKENS)
    assert texts == predictor(QUERIES, max_new_tokens=TOKENS)


def test_a_picture_in_the_history_is_seen_and_nothing_given_changes(vision_models, tmp_path):
    predictor = vision_models.predictor("qwen2_5_vl")
    saved_path = saved(tmp_path, "a.png", width=84, height=56)
    history = [question("What is it?", saved_path), {"role": "assistant", "content": "A box."}]
    before = repr(history)
    answer = predictor("And its colour?", history, max_new_tokens=TOKENS)
    assert answer == predictor(
        [[*history, {"role": "user", "content": "And its colour?"}]], max_new_tokens=TOKENS
    )
    blind = [{"role": "user", "content": "What is it?"}, history[1]]
    assert answer != predictor("And its colour?", blind, max_new_tokens=TOKENS)
    assert repr(history) == before


def test_sampled_answers_to_a_picture_are_repeatable_alone_and_in_a_batch(vision_models):
    predictor = vision_models.predictor("qwen2_vl")
    options = {"temperature": 1.0, "seed": 3, "num_return_sequences": 2, "max_new_tokens": TOKENS}
    both = predictor(QUERIES[:2], **options)
    assert both == predictor(QUERIES[0], **options) + predictor(QUERIES[1], **options)
    assert len(set(both)) == 4


def test_what_cannot_be_shown_is_refused_by_name(vision_models):
    predictor = vision_models.predictor("qwen2_5_vl")
    with pytest.raises(MissingFileError, match=r"'./example.jpg' does not exist"):
        predictor([question("?", "./example.jpg")])
    with pytest.raises(ConfigError, match=r"query\[0\] content\[0\] has the unknown key 'max_px'"):
        predictor([question("?", picture(), max_px=3)])
    with pytest.raises(ConfigError, match=r"content\[0\] must be a part such as"):
        predictor({"role": "user", "content": ["hello"]})
    with pytest.raises(DataError, match="placeholders for images, and its 0 images"):
        predictor("<|vision_start|><|image_pad|><|vision_end|>what?", build_message=False)
    large = question("?", Image.new("RGB", (2000, 2000)), resized_height=2016, resized_width=2016)
    with pytest.raises(GenerationError, match=r"has 52\d\d tokens.*a smaller max_pixels"):
        predictor(large)


def test_without_pillow_text_is_answered_and_a_picture_names_the_extra(vision_models, monkeypatch):
    predictor = vision_models.predictor("qwen2_vl")
    picture().save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    predictor.vision.__dict__.pop("image_processor", None)  # as in a fresh process
    assert len(predictor("Say hello.", max_new_tokens=2)) == 1
    with pytest.raises(MissingExtraError, match=r"needs the package 'pillow'"):
        predictor(question("What is it?", "a.png"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("qwen2_vl", "Qwen"), ("qwen3_vl", "Qwen"), ("llava", "Llava"), ("llava_next", "Llava")],
)
def test_the_right_class_is_loaded_and_named(name, expected, vision_models):
    path = vision_models.path(name)
    model = load_model(path, device="cpu")
    assert type(model) in AutoModelForImageTextToText._model_mapping.values()
    assert family(model.config) == expected
    assert context_length(load_config(path)) == 4096


def test_images_that_lie_beside_a_file_of_questions_are_found(vision_models, tmp_path):
    predictor = vision_models.predictor("qwen2_5_vl")
    saved(tmp_path / "data" / "images", "a.png")
    rows = [[question("What is it?", f"images/{name}.png")] for name in ("a", "gone")]
    items = read_items(write_rows(tmp_path / "data" / "test.jsonl", rows))
    expected = predictor(question("What is it?", picture()), max_new_tokens=TOKENS)
    assert predictor([items[0].query], [items[0].history], max_new_tokens=TOKENS) == expected
    with pytest.raises(MissingFileError, match=r"images/gone.png' does not exist"):
        predictor(items[1].query)


def test_the_shipped_picture_is_drawn_by_its_script_and_the_example_runs(
    vision_models, monkeypatch, capsys
):
    monkeypatch.chdir(ROOT)
    drawing = script("make_picture")
    assert Image.open(drawing.PICTURE).convert("RGB").tobytes() == drawing.draw().tobytes()
    path = vision_models.path("qwen2_5_vl")
    monkeypatch.setattr("sys.argv", ["x", "--model", str(path), "--max_new_tokens", "4"])
    runpy.run_path(str(ROOT / "examples" / "predict_vl.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "> Which colour is the circle?\n" in printed and "as a stream:\n" in printed


def test_a_server_sees_the_pictures_that_the_predictor_sees(vision_models):
    local = vision_models.predictor("qwen2_5_vl")
    exif = picture().getexif()
    exif[0x0112] = 6  # lies on its side
    picture(200, 100, 1).save("turned.jpg", exif=exif)
    picture(90, 60, 2).save("plain.png")
    queries = [
        question("What is it?", picture(84, 56)),
        question("Which of the two?", "turned.jpg", "plain.png"),
    ]
    with speaking(local) as served, Served("tiny", served.url, "") as pred:
        assert pred(queries, max_new_tokens=TOKENS) == local(queries, max_new_tokens=TOKENS)
