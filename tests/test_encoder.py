"""Vectors of sentences: by hand from the hidden states, whatever the batch, cached."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from main.errors import MissingFileError
from main.models.encoder import SentenceEncoder

TEXTS = [
    "The cat sits on the mat.",
    "A cat is sitting on a rug.",
    "return | silver mug | order 2897 | by Wednesday, and quite a few more words than the others",
    "x",
]


@pytest.fixture(scope="module")
def encoder(encoder_path):
    return SentenceEncoder(encoder_path, device="cpu")


def test_a_vector_is_the_normalised_mean_of_the_hidden_states(encoder, encoder_path):
    tokenizer = AutoTokenizer.from_pretrained(encoder_path)
    model = AutoModel.from_pretrained(encoder_path, dtype=torch.float32).eval()
    found = encoder.encode(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        mean = sum(states) / len(states)
        torch.testing.assert_close(vector, mean / mean.square().sum().sqrt(), rtol=1e-5, atol=1e-6)


def test_padding_does_not_enter_the_mean(encoder, encoder_path):
    together = SentenceEncoder(encoder_path, device="cpu", batch_size=4).encode(TEXTS)
    torch.testing.assert_close(together, encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)


def test_like_meanings_are_closer_than_unlike_ones(encoder):
    cat, kitten, order, _ = encoder.encode(TEXTS)
    assert cat @ kitten > 0.7 > 0.3 > cat @ order


def test_a_vector_on_the_cpu_does_not_depend_on_what_was_asked_before(encoder, encoder_path):
    fresh = SentenceEncoder(encoder_path, device="cpu")
    fresh.encode(TEXTS[:2])
    assert torch.equal(fresh.encode(TEXTS), encoder.encode(TEXTS[::-1]).flip(0))


def test_a_blank_text_is_like_nothing(encoder):
    vectors = encoder.encode(["", " \n", TEXTS[0]])
    assert vectors[0].abs().sum() == 0 and vectors[1].abs().sum() == 0
    assert vectors.isfinite().all() and vectors[2].norm() == pytest.approx(1)
    assert encoder.token_ids("") == []
    assert encoder.encode([]).shape[0] == 0


def test_a_text_is_computed_once_and_the_cache_is_bounded(encoder_path, monkeypatch):
    encoder = SentenceEncoder(encoder_path, device="cpu", cache_size=2)
    asked: list[str] = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda texts: (asked.extend(texts), embed(texts))[1])
    first = encoder.encode(["a", "b", "a"])
    assert sorted(asked) == ["a", "b"] and torch.equal(first[0], first[2])
    encoder.encode(["a"])
    assert sorted(asked) == ["a", "b"]
    encoder.encode(["c"])  # pushes "b" out, the least recently used
    encoder.encode(["a"])
    encoder.encode(["b"])
    assert asked[2:] == ["c", "b"]


def test_a_text_beyond_the_encoders_length_is_cut(encoder):
    assert encoder.max_length == 256
    assert encoder.encode(["word " * 2000]).isfinite().all()


def test_a_missing_folder_is_named():
    with pytest.raises(MissingFileError, match="no/such/encoder/here"):
        SentenceEncoder("no/such/encoder/here")


def test_sentence_transformers_is_not_imported():
    code = "import sys, main.models.encoder; sys.exit('sentence_transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
