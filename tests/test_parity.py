"""The train/serve report: what it finds in folders that were broken on purpose."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoTokenizer

from main.errors import ConfigError
from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.predictor.hf import Predictor
from main.types import ScoredAnswer
from main.utils.compare import Side, compare
from main.utils.merge_model import merge_model
from main.utils.parity import main, parity


@pytest.fixture(scope="module")
def adapter(tiny_model_path, tmp_path_factory) -> Path:
    """A large random adapter: its answers are not the base's."""
    model = add_adapter(load_model(tiny_model_path), LoraOptions(lora_r=4))
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(model, folder)
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(tiny_model_path, adapter, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "merged"
    merge_model(tiny_model_path, adapter, folder)
    return folder


@pytest.fixture
def broken(merged, tmp_path) -> Path:
    """A copy of the merged folder to break."""
    return Path(shutil.copytree(merged, tmp_path / "broken"))


def report(model, adapter, **options):
    return parity(model, adapter, max_new_tokens=12, vllm=False, **options)


def test_a_sound_merge_is_equal_and_says_so(tiny_model_path, adapter, capsys):
    arguments = [str(tiny_model_path), "--peft_path", str(adapter), "--no-vllm", "--limit", "3"]
    assert main([*arguments, "--max_new_tokens", "8"]) == 0
    printed = capsys.readouterr().out
    assert "merged (float32): OK: equal" in printed
    assert "| 100.0%       | none" in printed


def test_another_template_is_named_with_the_place(tiny_model_path, adapter, broken):
    tokenizer = AutoTokenizer.from_pretrained(broken)
    tokenizer.chat_template = tokenizer.chat_template.replace("SmolLM", "Nobody")
    tokenizer.save_pretrained(broken)
    found = report(tiny_model_path, adapter, merged=broken)
    assert not found.equal
    assert found.comparisons[0].same_prompts == 0
    assert "other chat template: prompt 0 differs from character" in found.table
    assert "'SmolLM, trained by" in found.table
    assert "'Nobody, trained by" in found.table


def test_another_stop_token_is_named(tiny_model_path, adapter, broken):
    scored = Predictor(tiny_model_path, peft_path=adapter).predict_with_logprobs(
        "请用一句话介绍北京。", max_new_tokens=12
    )
    stop = scored[0].token_ids[5]  # so that an answer ends early
    path = broken / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, stop]}))
    found = report(tiny_model_path, adapter, merged=broken)
    assert found.comparisons[0].cause.startswith(f"other stop tokens: [2] against [2, {stop}]")
    assert "stop" in found.comparisons[0].stop_reasons


def test_a_merge_in_bfloat16_is_rounding(tiny_model_path, adapter, tmp_path):
    rounded = load_model(tiny_model_path, dtype="bfloat16")
    model = PeftModel.from_pretrained(rounded, adapter).to(torch.bfloat16).merge_and_unload()
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(tmp_path / "half")
    comparison = report(tiny_model_path, adapter, merged=tmp_path / "half").comparisons[0]
    assert comparison.name == "merged (bfloat16)"
    assert comparison.cause.startswith("rounding: float32 against bfloat16")
    assert 1e-3 < comparison.mean < 0.1


def test_a_folder_without_the_adapter_has_other_weights(tiny_model_path, adapter):
    comparison = report(tiny_model_path, adapter, merged=tiny_model_path).comparisons[0]
    assert comparison.same < 0.2
    assert comparison.cause.startswith("other weights: ")


def test_a_wrong_scale_is_other_weights(tiny_model_path, adapter, tmp_path):
    merge_model(tiny_model_path, adapter, tmp_path / "scaled", weights=[1.3])
    comparison = report(tiny_model_path, adapter, merged=tmp_path / "scaled").comparisons[0]
    assert comparison.cause.startswith("other weights: ")


def test_rows_of_a_data_file_are_asked(tiny_model_path, adapter, merged, tmp_path):
    rows = [{"query": f"What follows {i}?"} for i in range(5)]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    found = report(tiny_model_path, adapter, merged=merged, data=data, limit=3)
    assert len(found.first.answers) == 3
    assert "What follows 2?" in found.first.prompts[2]
    with pytest.raises(ConfigError, match="limit=0 must be >= 1"):
        report(tiny_model_path, adapter, limit=0)


def side(
    ids: list[int], logprobs: list[float], reason="length", dtype="float32", stops=(2,)
) -> Side:
    answer = ScoredAnswer("", ids, logprobs, reason)
    return Side("s", "float32", ["p"], frozenset({2}), [answer])


def test_differences_count_the_tokens_before_the_answers_part():
    one = side([5, 6, 7, 8], [-1.0, -2.0, -3.0, -4.0])
    two = side([5, 6, 9, 8], [-1.0, -2.5, -9.0, -4.0])
    asked = []
    found = compare(one, two, lambda *arguments: asked.append(arguments) or 0.7)
    # |-1 + 1| and |-2 + 2.5|
    assert (found.mean, found.largest, found.same) == (0.25, 0.5, 0.0)
    assert found.splits[0] == (0, 2, (7, 9), 0.7)
    assert asked == [(0, [5, 6], 7, 9)]
    assert found.cause.startswith("other weights")


@pytest.mark.parametrize(("gap", "equal"), [(0.0005, True), (0.5, False)])
def test_a_tie_is_equal_and_a_clear_preference_is_not(gap, equal):
    one, two = side([5, 6], [-1.0, -2.0]), side([5, 7], [-1.0, -2.0])
    found = compare(one, two, lambda *_: gap)
    assert found.equal is equal
    assert ("1 ties" in found.cause) is equal


def test_the_same_tokens_cut_or_stopped_are_not_the_same_answer():
    one, two = side([5, 6], [-1.0, -2.0], "stop"), side([5, 6], [-1.0, -2.0], "length")
    found = compare(one, two, lambda *_: 0.0)
    assert found.same == 0
    assert found.splits[0].tokens == (None, None)
    assert not found.equal
