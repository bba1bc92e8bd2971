"""A merged folder in real servers: the answer of the adapter, whoever gives it."""

from typing import Any

import pytest
import requests
from vllm_models import ENGINE, make_adapter, save_tiny
from vllm_server import TINY, served

from main.models import load_tokenizer
from main.predictor.hf import Predictor as HFPredictor
from main.predictor.vllm import Predictor as VLLMPredictor
from main.utils.merge_model import merge_model

QUERIES = ["Hi", "What is the capital of France?", "写一个关于猫的句子。"]
TOKENS = 12
COMMANDS = {
    "vllm": ["serve"],
    "trl": ["vllm-serve", "--enforce-eager", "true", "--model"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_model_path):
    """(base, adapter, merged) of a random model with a real tokenizer."""
    place = tmp_path_factory.mktemp("merged")
    base = save_tiny(place / "base", tokenizer=load_tokenizer(small_model_path))
    adapter = make_adapter(base, place / "adapter", 3)
    merge_model(base, adapter, place / "merged")
    return base, adapter, place / "merged"


@pytest.fixture(scope="module")
def expected(folders):
    """Greedy ids and texts by transformers, the adapter on its base."""
    base, adapter, _ = folders
    predictor = HFPredictor(base, adapter, dtype="float32", device="cpu")
    found = predictor.predict_with_logprobs(QUERIES, max_new_tokens=TOKENS)
    plain = HFPredictor(base, dtype="float32", device="cpu")
    for query, answer in zip(QUERIES, found, strict=True):
        assert plain(query, max_new_tokens=TOKENS) != [answer.text]
    return found


@pytest.mark.vllm
def test_the_adapter_in_our_engine(folders, expected):
    base, adapter, _ = folders
    with VLLMPredictor(base, adapter, dtype="float32", **ENGINE) as predictor:
        found = predictor.predict_with_logprobs(QUERIES, max_new_tokens=TOKENS)
    assert [(a.token_ids, a.text) for a in found] == [(a.token_ids, a.text) for a in expected]


@pytest.mark.vllm
@pytest.mark.parametrize("script", COMMANDS)
def test_the_merged_folder_in_a_server(folders, expected, script, tmp_path):
    merged = folders[-1]
    with served([script, *COMMANDS[script], merged, *TINY], tmp_path / "log") as address:
        for query, answer in zip(QUERIES, expected, strict=True):
            request: dict[str, Any] = {
                "model": str(merged),
                "messages": [{"role": "user", "content": query}],
                "max_tokens": TOKENS,
                "temperature": 0,
                "return_token_ids": True,
            }
            response = requests.post(f"{address}/v1/chat/completions", json=request, timeout=120)
            assert response.ok, response.text
            choice = response.json()["choices"][0]
            assert choice["token_ids"] == answer.token_ids
            assert choice["message"]["content"].rstrip("\ufffd") == answer.text
