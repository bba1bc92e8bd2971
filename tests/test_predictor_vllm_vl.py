"""The vLLM predictor with pictures: the HF predictor's answers, from the same pixels."""

from importlib.util import find_spec

import pytest
from vision_checkpoints import build, picture, question
from vllm_models import ENGINE, make_adapter

from main.errors import ConfigError, ModelError
from main.predictor.hf import Predictor as HFPredictor
from main.predictor.vllm import Predictor
from main.predictor.vllm_pixels import image_input
from main.vision import Visual

TOKENS = 8
QUERIES = [
    question("What is it?", picture(84, 56)),
    {"role": "user", "content": "Say hello."},
    question("Which of the two?", picture(200, 100, 1), picture(60, 90, 2)),
    question("她是谁?", picture(28, 280, 3), resized_height=56, resized_width=112),
]


@pytest.mark.vllm
@pytest.mark.skipif(
    find_spec("torchvision") is None,
    reason="vLLM opens no model with vision without torchvision, which its CPU build lacks",
)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_greedy_tokens_of_pictures_are_those_of_transformers(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture(300, 200).save("example.jpg")
    base = build(tmp_path / "base", name, wide=True)
    adapter = make_adapter(base, tmp_path / "adapter", 1)
    guide = [question(text, "./example.jpg") for text in ("她是谁?", "她有哪些著作?")]
    queries = [*QUERIES, *guide]
    expected = [
        HFPredictor(base, path, dtype="float32", device="cpu").predict_with_logprobs(
            queries, max_new_tokens=TOKENS
        )
        for path in (None, adapter)
    ]
    options = {**ENGINE, "max_model_len": 1024, "skip_mm_profiling": True}
    with Predictor(base, adapter, dtype="float32", **options) as pred:
        for path, answers in zip((None, adapter), expected, strict=True):
            found = pred.predict_with_logprobs(queries, max_new_tokens=TOKENS, peft_path=path)
            differences = [
                abs(a - b)
                for one, other in zip(found, answers, strict=True)
                for a, b in zip(one.logprobs, other.logprobs, strict=True)
            ]
            print(f"{name}: log-probabilities within {max(differences):.1e}")
            assert [a.token_ids for a in found] == [a.token_ids for a in answers]
            assert max(differences) < 1e-3
        assert pred(guide, max_new_tokens=TOKENS) == [a.text for a in expected[1][-2:]]


@pytest.mark.vllm
def test_without_torchvision_a_model_that_reads_images_is_refused(vision_models, monkeypatch):
    monkeypatch.setattr("main.predictor.vllm_pixels.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"without torchvision.*Use main\.predictor\.hf"):
        Predictor(vision_models.path("qwen2_5_vl"))


@pytest.mark.vllm
def test_a_video_is_refused_by_name():
    video = Visual("video", ("a.png", "b.png"))
    with pytest.raises(ConfigError, match=r"images, not videos \(video of 2 frames\)"):
        image_input([1, 2], [video], None, None)  # type: ignore[arg-type]
