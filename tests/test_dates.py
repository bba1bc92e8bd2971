"""A template that writes the date writes one date for a whole run, on whatever day it goes on."""

import datetime
from pathlib import Path

import chat_templates
import four_trainers
import pytest

from main.errors import CheckpointError, ConfigError
from main.loaders import get_template
from main.models.training_record import read_record

pytestmark = pytest.mark.usefixtures("own_folder")


def dated(name: str = "smollm2"):
    """A tokenizer whose template writes the date, as Llama 3.2's does."""
    return chat_templates.load_tokenizer(name, "llama3_2")


def make_trainer(model, method="lora", **changes):
    return four_trainers.make_trainer(method, model, tokenizer=dated(), **changes)


def texts(trainer):
    rows = [trainer.train_data[i] for i in range(len(trainer.train_data))]
    return [trainer.tokenizer.decode(row.get("input_ids") or row["prompt_ids"]) for row in rows]


def test_rows_and_the_key_of_their_cache_have_the_date_that_was_given():
    leap = get_template(dated(), "LLM_Chat", today=datetime.date(2020, 2, 29))
    assert "29 Feb 2020" in leap.tokenizer.decode(leap.encode_prompt(chat_templates.turns("q")))
    assert leap.fingerprint() != get_template(dated(), "LLM_Chat").fingerprint()
    assert get_template(dated(), "LLM_Chat").date_written == str(datetime.date.today())
    plain = chat_templates.load_tokenizer("smollm2")
    day = datetime.date(2020, 2, 29)
    same = get_template(plain, "LLM_Chat", today=day), get_template(plain, "LLM_Chat")
    assert same[0].fingerprint() == same[1].fingerprint() and not same[0].date_written


@pytest.mark.parametrize("method", ["lora", "grpo"])
def test_a_run_that_is_resumed_on_another_day_is_the_same_run(tiny_model_path, method):
    four_trainers.write_data(Path(), train=4, dev=2)
    first = make_trainer(tiny_model_path, method, template_date="2020-02-29")
    (result, *_) = four_trainers.run(first, method, num_epochs=1, save_strategy="epoch")
    record = read_record(result.checkpoint)
    assert record is not None and record.template_date == "2020-02-29"
    again = make_trainer(tiny_model_path, method)
    assert all("29 Feb 2020" in text for text in texts(again)) and texts(again) == texts(first)
    resume = {"num_epochs": 2, "save_strategy": "epoch", "resume_from_checkpoint": "auto"}
    assert [r.epoch for r in four_trainers.run(again, method, **resume)] == [2]
    other = make_trainer(tiny_model_path, method, template_date="2020-03-01")
    assert all("01 Mar 2020" in text for text in texts(other))
    with pytest.raises(CheckpointError, match=r"rows: .* then, .* now"):
        next(four_trainers.run(other, method, **(resume | {"num_epochs": 3})))


@pytest.mark.parametrize("written", ['{"template_date": "soon"}', '{"template_date": 7}', "{"])
def test_a_record_without_a_date_gives_none(tiny_model_path, written):
    four_trainers.write_data(Path(), train=2, dev=2)
    mine = Path("save_model/lora/Llama_3")
    mine.mkdir(parents=True)
    (mine / "training.json").write_text(written, encoding="utf-8")
    assert make_trainer(tiny_model_path).template.date_written == str(datetime.date.today())


def test_what_is_no_date_is_refused(tiny_model_path):
    four_trainers.write_data(Path(), train=2, dev=2)
    for text in ("29.2.2020", "2021-02-29", "20200229"):
        with pytest.raises(ConfigError, match=r"template_date=.* must be a date as '2026-12-31'"):
            make_trainer(tiny_model_path, template_date=text)


def test_a_date_for_a_template_that_writes_none_is_refused(tiny_model_path):
    four_trainers.write_data(Path(), train=2, dev=2)
    with pytest.raises(ConfigError, match="changes nothing with a template that writes no date"):
        four_trainers.make_trainer("lora", tiny_model_path, template_date="2020-02-29")
