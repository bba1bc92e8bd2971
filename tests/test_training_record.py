"""How an adapter was trained travels with it, and prediction follows it or says what differs."""

import json
import logging
from pathlib import Path

import four_trainers
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from main.errors import ConfigError, MissingFileError
from main.models import load_model
from main.models.training_record import (
    FILE,
    SAMPLES,
    model_digest,
    read_record,
    spread,
    write_record,
)
from main.predictor.hf import Predictor
from main.trainer.lora import Trainer
from main.utils.describe import describe
from main.utils.describe import main as describe_command
from main.utils.merge_model import merge_model
from main.utils.parity import parity

pytestmark = pytest.mark.usefixtures("own_folder")

QUERY = "What is two and two?"


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


def trained(model: Path, loader: str, **changes) -> Path:
    """A checkpoint of one step; the tiny model learns nothing, its record is what counts."""
    plain_rows = [{"context": f"{QUERY} {i}", "target": " Four."} for i in range(4)]
    turns = [{"role": "user", "content": QUERY}, {"role": "assistant", "content": "Four."}]
    rows = plain_rows if loader == "LLM_Pure" else [{"conversations": turns}] * 4
    Path("train.json").write_text(json.dumps(rows), encoding="utf-8")
    trainer = Trainer(
        from_pretrained=model, loader_name=loader, data_path={"train": "train.json"}, lora_r=2,
        task_name=loader, max_length=64, **changes,
    )  # fmt: skip
    (result,) = trainer(num_epochs=1, lr=0.05, report_to="none", progress=False)
    assert result.checkpoint is not None
    return Path(result.checkpoint)


def test_a_checkpoint_says_how_it_was_trained_and_the_command_shows_it(tiny_model_path, capsys):
    checkpoint = trained(tiny_model_path, "LLM_Chat")
    record = read_record(checkpoint)
    assert record is not None
    assert (record.method, record.loader, record.plain_text) == ("lora.Trainer", "LLM_Chat", False)
    assert record.base == str(tiny_model_path)
    assert record.base_digest == model_digest(load_model(tiny_model_path))
    assert record.data["train"]
    assert record.setup["lora_r"] == 2
    assert record.call["lr"] == 0.05
    assert describe_command([str(checkpoint)]) == 0
    shown = capsys.readouterr().out
    for fact in ("method: lora.Trainer", "loader: LLM_Chat", "  lr = 0.05", "  lora_r = 2"):
        assert fact in shown
    with pytest.raises(MissingFileError, match=r"has no readable training\.json"):
        describe(tiny_model_path)


def test_an_adapter_of_plain_text_is_asked_without_a_chat_template(tiny_model_path, caplog):
    checkpoint = trained(tiny_model_path, "LLM_Pure")
    predictor = Predictor(tiny_model_path, peft_path=checkpoint)

    def ids(**options):
        rows, _ = predictor._prepare(QUERY, None, 4, options)
        return rows[0].prompt_ids

    plain = AutoTokenizer.from_pretrained(tiny_model_path)(QUERY)["input_ids"]
    assert ids() == ids(build_message=False) == plain
    assert not warned(caplog)
    with caplog.at_level(logging.WARNING, logger="main"):
        assert len(ids(build_message=True)) > len(plain)
        ids(build_message=True)
    assert caplog.text.count("trained without a chat template (loader LLM_Pure)") == 1
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for query, past in ((QUERY, history), ({"role": "user", "content": QUERY}, None)):
        with pytest.raises(ConfigError, match=r"trained on plain text \(loader LLM_Pure"):
            predictor(query, past)
    assert predictor(QUERY, history, max_new_tokens=1, build_message=True)
    # what is merged from it keeps the record, and parity asks as the adapter was trained
    merge_model(tiny_model_path, checkpoint, "merged")
    merged = Predictor("merged")
    assert merged._prepare(QUERY, None, 4, {})[0][0].prompt_ids == plain
    report = parity(tiny_model_path, checkpoint, limit=2, max_new_tokens=2, vllm=False)
    assert report.first.prompts[0] == "What is the capital of France, and what is it known for?"


def test_a_chat_adapter_asked_with_finished_prompts_is_told_once(tiny_model_path, caplog):
    predictor = Predictor(tiny_model_path, peft_path=trained(tiny_model_path, "LLM_Chat"))
    with caplog.at_level(logging.WARNING, logger="main"):
        predictor(QUERY, max_new_tokens=1)
        assert not warned(caplog)
        predictor(QUERY, max_new_tokens=1, build_message=False)
    assert "trained with a chat template (loader LLM_Chat)" in caplog.text


def test_another_base_or_template_is_told_and_not_refused(tiny_model_path, caplog):
    checkpoint = trained(tiny_model_path, "LLM_Chat")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_path)
    model.model.norm.weight.data[7] *= 2  # one value of one tensor of many
    model.save_pretrained("other")
    AutoTokenizer.from_pretrained(tiny_model_path).save_pretrained("other")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with caplog.at_level(logging.WARNING, logger="main"):
        Predictor(tiny_model_path, peft_path=checkpoint, dtype="bfloat16")
        assert "trained on another base" not in caplog.text  # rounding is no other base
        Predictor("other", peft_path=checkpoint)
        assert "trained on another base" in caplog.text
        assert "chat template is another one" not in caplog.text
        tokenizer.chat_template += "{# changed #}"
        tokenizer.save_pretrained(checkpoint)
        Predictor(tiny_model_path, peft_path=checkpoint)
    assert "chat template is another one" in caplog.text


def test_the_templates_variables_of_the_training_are_those_of_prediction(tiny_model_path, caplog):
    base = Path("with_mood")
    load_model(tiny_model_path).save_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path)
    mood = "{%- if mood is defined and mood %}{{ 'MOOD ' ~ mood ~ '\\n' }}{%- endif %}"
    tokenizer.chat_template = mood + tokenizer.chat_template
    tokenizer.save_pretrained(base)
    checkpoint = trained(base, "LLM_Chat", template_kwargs={"mood": "calm"})
    predictor = Predictor(base, peft_path=checkpoint)

    def text(**options):
        rows, _ = predictor._prepare(QUERY, None, 4, options)
        return predictor.tokenizer.decode(rows[0].prompt_ids)

    assert text().startswith("MOOD calm")
    with caplog.at_level(logging.WARNING, logger="main"):
        assert text(mood="wild").startswith("MOOD wild")
    assert "mood='wild', and the adapter was trained with 'calm'" in caplog.text


@pytest.mark.parametrize("method", ["lora", "dpo", "grpo", "ppo"])
def test_the_record_says_what_the_policy_was_held_against(tiny_model_path, method, capsys):
    four_trainers.write_data(Path(), train=4, dev=2)
    options = {"num_epochs": 1, "save_strategy": "epoch", "eval_strategy": "no"}

    def reference(**changes) -> str:
        given = changes.pop("options", {})
        trainer = four_trainers.make_trainer(method, tiny_model_path, **changes)
        (result,) = four_trainers.run(trainer, method, **options, **given)
        record = read_record(result.checkpoint)
        assert record is not None
        if record.reference:
            assert describe_command([str(result.checkpoint)]) == 0
            assert f"reference: {record.reference}" in capsys.readouterr().out
        return record.reference

    kept = four_trainers.make_trainer(method, tiny_model_path)
    kept.save(Path("start"))
    start = {"actor_resume_path" if method == "ppo" else "resume_path": "start"}
    expected = ("", "") if method == "lora" else ("the base", "the adapter as training began")
    assert (reference(), reference(**start, task_name="second")) == expected
    if method == "grpo":
        moving = {"sync_ref_model": True, "ref_model_sync_steps": 1}
        assert "sync_ref_model" in reference(options=moving, task_name="third")
        assert reference(options={"beta": 0.0}, task_name="fourth") == ""


def test_a_damaged_record_is_told_and_blocks_nothing(tiny_model_path, caplog):
    checkpoint = trained(tiny_model_path, "LLM_Chat")
    (checkpoint / FILE).write_text('{"loader": ')
    with caplog.at_level(logging.WARNING, logger="main"):
        assert Predictor(tiny_model_path, peft_path=checkpoint)(QUERY, max_new_tokens=1)
    assert "is damaged and not used" in caplog.text


def test_a_digest_sees_a_value_of_any_tensor_and_no_dtype(tiny_model_path):
    model = load_model(tiny_model_path)
    own = model_digest(model)
    assert model_digest(load_model(tiny_model_path, dtype=torch.bfloat16)) == own
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    assert model_digest(model) != own


def test_a_record_is_read_as_it_was_written(tiny_model_path, tmp_path):
    record = read_record(trained(tiny_model_path, "LLM_Pure"))
    assert record is not None
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 2**24 + 1, 28_311_552, 128_256 * 8_192])
def test_the_sample_of_a_tensor_reaches_from_its_first_value_to_its_last(size):
    """49152 x 576 values: a float32 cannot count them, and 28311551 becomes 28311552."""
    places = spread(size)
    assert (places[0], places[-1]) == (0, size - 1)
    assert len(set(places)) == len(places) == min(size, SAMPLES)
