"""Batch inference knows who answers: a file has the answers of one model, and says of which."""

import concurrent.futures
import json
import logging
import subprocess
import sys

import pytest

from main.errors import ConfigError, DataError
from main.evaluation.answered_by import Record, read, record_path
from main.evaluation.inferences import inference_with_data
from main.models import LoraOptions, add_adapter, load_model, save_adapter
from main.predictor.answerer import Answerer, hearing, note
from main.predictor.hf import Predictor
from main.predictor.sampling import GenerationOptions

A, B = Answerer("a", "base", "first"), Answerer("b", "base", "second")


def asks(who, stop_at=None, **options):
    """A plain function that asks a predictor; it is interrupted at call number `stop_at`."""
    calls: list[dict] = []

    def batcher(item):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(item)
        settings = GenerationOptions(build_message=True, **options)
        note(who, settings, "", {"system_prompt": None})
        return [f"{who.adapter if who else 'api'}: {query}" for query in item["query"]]

    return batcher


def rows_of(count):
    return [{"query": f"q{i}"} for i in range(count)]


def half_answered(save, who, **options):
    with pytest.raises(KeyboardInterrupt):
        inference_with_data(rows_of(6), asks(who, stop_at=2, **options), save, 2)


@pytest.fixture
def save(tmp_path):
    return tmp_path / "out" / "responses.jsonl"


def test_another_model_does_not_go_on_with_a_file(save):
    half_answered(save, A)
    before = save.read_bytes()
    with pytest.raises(ConfigError) as caught:
        inference_with_data(rows_of(6), asks(B), save, 2)
    assert str(caught.value) == (
        f"{save} has 4 rows answered by model 'base' with adapter 'first', and the batcher asks "
        "model 'base' with adapter 'second'. Answers of two models are not mixed in a file: name "
        "another one, or lose this one with overwrite=True."
    )
    assert save.read_bytes() == before
    assert inference_with_data(rows_of(6), asks(A), save, 2).rows == 6
    inference_with_data(rows_of(6), asks(B), save, 2, overwrite=True)
    assert read([save]).answerers == [B]
    assert "first" not in save.read_text()


def test_other_weights_under_the_same_name_are_another_model(save):
    half_answered(save, A)
    with pytest.raises(ConfigError, match="with adapter 'first' of other content"):
        inference_with_data(rows_of(6), asks(A._replace(digest="c")), save, 2)


def test_failed_rows_are_asked_again_of_the_same_model_only(save):
    def failing(item):
        note(A, GenerationOptions(), "", {})
        if "q1" in item["query"]:
            raise RuntimeError("no")
        return item["query"]

    inference_with_data(rows_of(4), failing, save, 2)
    with pytest.raises(ConfigError, match="has 3 rows answered by"):
        inference_with_data(rows_of(4), asks(B), save, 2, retry_failed=True)
    assert inference_with_data(rows_of(4), asks(A), save, 2, retry_failed=True).failed == 0


def test_a_finished_file_names_who_answered_it(save, caplog):
    inference_with_data(rows_of(3), asks(A), save)
    caplog.clear()
    inference_with_data(rows_of(3), asks(B), save)  # nobody is asked
    told = "all 3 rows were already answered, by model 'base' with adapter 'first'."
    assert told in caplog.text


def test_the_file_itself_has_nothing_but_rows(save):
    inference_with_data(rows_of(3), asks(A), save)
    assert [json.loads(line)["idx"] for line in save.open()] == [0, 1, 2]
    names = sorted(path.name for path in save.parent.iterdir())
    assert names == ["responses.jsonl", "responses.jsonl.answered_by.json"]


def test_a_file_without_a_name_is_told_and_continued(save, caplog):
    half_answered(save, None)
    inference_with_data(rows_of(6), asks(A), save, 2)
    assert (
        "4 rows were answered before, by a model that was not recorded; the others are by "
        "model 'base' with adapter 'first'" in caplog.text
    )
    assert read([save]) == Record([A], {"chat_template": ""}, nameless=4)
    caplog.clear()
    inference_with_data(rows_of(6), asks(A), save, 2)
    assert "with adapter 'first' and a model that was not recorded" in caplog.text


def test_who_answers_without_a_name_is_told_where_a_model_began(save, caplog):
    half_answered(save, A)
    inference_with_data(rows_of(6), asks(None), save, 2)
    assert "before, by model 'base' with adapter 'first'; the others are by a mod" in caplog.text


def test_other_settings_are_told_with_both_values_and_continued(save, caplog):
    half_answered(save, A, max_new_tokens=48)
    inference_with_data(rows_of(6), asks(A, temperature=0.7), save, 2)
    assert "other settings: max_new_tokens 48 then, default now, temperature" in caplog.text
    assert "temperature default then, 0.7 now" in caplog.text


def test_the_same_settings_are_not_worth_a_word(save, caplog):
    half_answered(save, A, max_new_tokens=48)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        inference_with_data(rows_of(6), asks(A, max_new_tokens=48), save, 2)
    assert caplog.text == ""


def test_a_batcher_of_two_models_may_go_on_with_both(save):
    def both(item):
        return [asks(B)(item), asks(A)(item)][1]

    with pytest.raises(KeyboardInterrupt):
        inference_with_data(rows_of(6), lambda i: both(i) if "q0" in i["query"] else asks(A, 0)(i),
                            save, 2)  # fmt: skip
    assert read([save]).answerers == [B, A]
    assert inference_with_data(rows_of(6), both, save, 2).rows == 6


def test_a_record_without_its_file_is_forgotten(save):
    inference_with_data(rows_of(3), asks(A), save)
    save.unlink()
    inference_with_data(rows_of(3), asks(B), save)
    assert read([save]).answerers == [B]


def test_a_damaged_record_is_named_with_the_way_out(save):
    inference_with_data(rows_of(3), asks(A), save)
    for text in ("{", "[]", '{"answerers": [{"digest": 1}]}', "[" * 9000):
        record_path(save).write_text(text)
        with pytest.raises(DataError, match=r"answered_by\.json does not say .* Delete it"):
            inference_with_data(rows_of(3), asks(A), save)


def test_a_run_killed_after_its_first_batch_leaves_its_name(save):
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from test_answered_by import *\n"
        "from pathlib import Path\n"
        "def batcher(item):\n"
        "    if 'q2' in item['query']: os.kill(os.getpid(), 9)\n"
        "    return asks(A)(item)\n"
        "inference_with_data(rows_of(6), batcher, Path(sys.argv[1]), 2)\n"
    )
    folder = str(__file__).rpartition("/")[0]
    run = subprocess.run([sys.executable, "-c", code, str(save), folder], capture_output=True)
    assert run.returncode == -9, run.stderr[-500:]
    with pytest.raises(ConfigError, match="has 2 rows answered by model 'base' with adapter 'fir"):
        inference_with_data(rows_of(6), asks(B), save, 2)


def test_threads_of_a_batcher_are_heard_and_other_runs_are_not():
    def in_a_thread(who):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(note, who, GenerationOptions(), "", {}).result()

    with hearing() as calls:
        in_a_thread(A)
        assert [call.answerer for call in calls] == [A]
        with hearing() as inner:
            note(B, GenerationOptions(), "", {})
            in_a_thread(B)  # whose is not known
    assert [call.answerer for call in inner] == [B]
    assert [call.answerer for call in calls] == [A]


@pytest.fixture(scope="module")
def adapters(tiny_model_path, tmp_path_factory):
    """Two folders of equal configuration and other weights."""
    import torch

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        adapted = add_adapter(load_model(tiny_model_path), LoraOptions())
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight.data)
        folders.append(tmp_path_factory.mktemp("adapter") / str(seed))
        save_adapter(adapted, folders[-1])
    return folders


def test_a_plain_function_around_a_real_predictor_is_known(
    tiny_model_path, adapters, save, tmp_path
):
    first = Predictor(tiny_model_path, peft_path=adapters[0])
    inference_with_data(rows_of(2), lambda item: first(**item, max_new_tokens=2), save)
    (who,) = read([save]).answerers
    assert (who.model, who.adapter) == (str(tiny_model_path), str(adapters[0]))
    assert read([save]).settings["max_new_tokens"] == 2
    second = Predictor(tiny_model_path, peft_path=adapters[1])
    copied = tmp_path / "moved"
    copied.symlink_to(adapters[0])
    again = Predictor(tiny_model_path, peft_path=copied)
    known = [p.voice.answerer for p in (first, second, again, Predictor(tiny_model_path))]
    digests = [one.digest for one in known if one]
    assert digests[0] == digests[2] and len(set(digests)) == 3


def test_records_beside_the_parts_of_a_killed_run_of_several_processes_are_kept(save):
    half_answered(save, A)
    folder = save.with_name("responses.jsonl.parts")
    lines = save.read_bytes().splitlines(keepends=True)
    for rank, part in enumerate((lines[:2], lines[2:])):
        (folder / f"part-{rank}.jsonl").write_bytes(b"".join(part))
    record_path(save).rename(record_path(folder / "part-1.jsonl"))
    save.unlink()
    with pytest.raises(ConfigError, match="has 4 rows answered by model 'base' with adapter 'fir"):
        inference_with_data(rows_of(6), asks(B), save, 2)
    assert read([save]).answerers == [A]
    assert inference_with_data(rows_of(6), asks(A), save, 2).rows == 6
    assert read([save]).answerers == [A] and not folder.exists()
