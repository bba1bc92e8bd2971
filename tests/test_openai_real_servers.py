"""The predictor of servers against vLLM and `transformers serve`: the HF predictor's answers."""

from typing import Any

import pytest
from vllm_models import save_tiny
from vllm_server import TINY, served

from main.errors import ConfigError, GenerationError, ModelError
from main.models import load_tokenizer
from main.predictor.hf import Predictor as Local
from main.predictor.openai import Predictor

QUERIES = ["Hi", "What is the capital of France?", "写一个关于猫的句子。"]
HISTORY = [
    {"role": "user", "content": "My name is Ada."},
    {"role": "assistant", "content": "Hello Ada."},
]
REQUESTS: list[dict[str, Any]] = [
    {"query": QUERIES},
    {"query": "What is my name?", "history": HISTORY},
    {"query": "The capital of", "build_message": False},
    {"query": QUERIES, "repetition_penalty": 1.3},
    {"query": "Capital?", "assistant_prefix": "It is"},
    {"query": QUERIES, "stop": ["e", "a"]},
    {"query": "Say hi.", "skip_special_tokens": False, "stop": "<|im_end|>"},
    {"query": QUERIES, "stop_token_ids": [198, 30]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory, small_model_path):
    folder = tmp_path_factory.mktemp("served") / "base"
    return save_tiny(folder, tokenizer=load_tokenizer(small_model_path), context=256)


@pytest.fixture(scope="module")
def local(base):
    return Local(base, dtype="float32")


@pytest.fixture(scope="module")
def vllm_url(base, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "vllm"
    name = ["--served-model-name", "tiny", "--no-enable-chunked-prefill", "--enforce-eager"]
    with served(["vllm", "serve", base, *TINY, *name], log) as url:
        yield url


@pytest.mark.vllm
def test_vllm_gives_the_answers_of_the_other_predictors(vllm_url, local):
    with Predictor("tiny", vllm_url, "") as pred:
        for request in REQUESTS:
            asked = {"max_new_tokens": 12, **request}
            theirs = local.predict_with_logprobs(**asked)
            mine = pred.predict_with_logprobs(**asked)
            assert [m.token_ids for m in mine] == [t.token_ids for t in theirs], request
            assert [m.text for m in mine] == [t.text for t in theirs], request
            assert [m.finish_reason for m in mine] == [t.finish_reason for t in theirs], request
            for one, other in zip(mine, theirs, strict=True):
                if "repetition_penalty" not in request:  # vLLM counts before its penalty
                    assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
            assert list(pred.predict_stream(**asked))[-1][1] == [m.text for m in mine]
            shared = {k: v for k, v in request.items() if k in ("history", "build_message")}
            query = request["query"]
            if "assistant_prefix" not in request:
                assert pred.prompt_ids(query, **shared) == local.prompt_ids(query, **shared)


@pytest.mark.vllm
def test_what_vllm_alone_can_do_and_what_it_refuses(vllm_url):
    with Predictor("tiny", vllm_url, "") as pred:
        assert pred("Wet?", choice=["yes", "no"])[0] in ("yes", "no")
        assert pred("Number?", regex="[0-9]{3}")[0].isdigit()
        drawn: dict[str, Any] = {
            "temperature": 1.0,
            "seed": 4,
            "num_return_sequences": 3,
            "max_new_tokens": 6,
        }
        assert len(set(pred("Hi", **drawn))) == 3 and pred("Hi", **drawn) == pred("Hi", **drawn)
        assert len(pred(["Hi"], max_new_tokens=9999)) == 1  # as far as the context goes
        with pytest.raises(GenerationError, match="maximum context length is 256"):
            pred("word " * 400)
        with pytest.raises(ConfigError, match="writes no tools"):
            pred("Hi", tools=[{"name": "f", "description": "", "parameters": {}}])
    with pytest.raises(ModelError, match=r"no model 'tin'; it has 'tiny'. Did you mean"):
        Predictor("tin", vllm_url, "")


@pytest.mark.long
def test_transformers_serve_gives_them_too_and_what_it_ignores_is_an_error(base, local, tmp_path):
    pytest.importorskip("fastapi")
    command = ["transformers", "serve", base, "--dtype", "float32", "--device", "cpu"]
    with served(command, tmp_path / "log") as url, Predictor(str(base), url, "") as pred:
        asked = {"max_new_tokens": 12}
        assert pred(QUERIES, **asked) == local(QUERIES, **asked)
        assert pred("My name?", HISTORY, **asked) == local("My name?", HISTORY, **asked)
        assert list(pred.predict_stream(QUERIES, **asked))[-1][1] == local(QUERIES, **asked)
        with pytest.raises(GenerationError, match="told no log-probabilities"):
            pred.predict_with_logprobs("Hi", **asked)
        with pytest.raises(ConfigError, match="'top_k' is not among"):
            pred("Hi", top_k=3, do_sample=True)
