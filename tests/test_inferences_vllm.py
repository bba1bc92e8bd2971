"""Batch inference through vLLM: an engine that is killed ends the run, and another one goes on."""

import json
from typing import Any

import pytest
from vllm_models import ENGINE, save_tiny

from main.errors import EngineDiedError, GenerationError
from main.evaluation.inferences import inference_with_data
from main.models import load_tokenizer
from main.predictor.hf import Predictor as HFPredictor
from main.predictor.vllm import Predictor


@pytest.mark.vllm
def test_a_killed_engine_ends_the_run_and_the_hf_predictor_of_the_model_goes_on(
    small_model_path, tmp_path
):
    model = save_tiny(tmp_path / "model", tokenizer=load_tokenizer(small_model_path))
    save, rows = tmp_path / "out.jsonl", [{"query": f"question {i}"} for i in range(8)]
    options: dict[str, Any] = {**ENGINE, "kv_cache_memory_bytes": 2**28, "max_model_len": 128}
    calls = []
    with Predictor(model, dtype="float32", **options) as pred:

        def batcher(item):
            calls.append(item)
            if len(calls) == 3:
                for process in pred.engine._parts["processes"]:
                    process.kill()
            return pred(**item, max_new_tokens=4)

        with pytest.raises(GenerationError, match=r"stopped at row 4: .*Make a new predictor") as e:
            inference_with_data(rows, batcher, save, 2)
        assert isinstance(e.value.__cause__, EngineDiedError)
    assert len(calls) == 3
    assert [json.loads(line)["idx"] for line in save.open()] == [0, 1, 2, 3]
    hf = HFPredictor(model, dtype="float32")
    summary = inference_with_data(rows, lambda item: hf(**item, max_new_tokens=4), save, 2)
    assert summary[:2] == (8, 0)
