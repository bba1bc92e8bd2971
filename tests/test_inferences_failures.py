"""Batch inference: rows that fail are told from a batcher, or an engine, that does not work."""

import json
import logging
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch

from main.errors import EngineDiedError, GenerationError
from main.evaluation.inferences import inference_with_data


@pytest.fixture
def save(tmp_path):
    return tmp_path / "responses.jsonl"


def rows_of(count):
    return [{"query": f"q{i}"} for i in range(count)]


def answers(save):
    return [(row["idx"], row["response"]) for row in map(json.loads, save.open(encoding="utf-8"))]


def failing_on(*bad, error=RuntimeError):
    """A batcher, and the calls that it got."""
    calls = []

    def batcher(item):
        calls.append(item["query"])
        if set(bad) & set(item["query"]):
            raise error("no answer to this")
        return [f"re: {query}" for query in item["query"]]

    return batcher, calls


def good(item):
    return [f"re: {query}" for query in item["query"]]


EXPECTED = [(i, f"re: q{i}") for i in range(12)]


def test_a_batcher_with_a_typo_stops_and_the_same_call_answers_its_rows(save):
    def typo(item):
        return nothing_of_this_name(item)  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(GenerationError, match=r"no row could be answered.*row 0: NameError") as e:
        inference_with_data(rows_of(12), typo, save, 2)
    assert isinstance(e.value.__cause__, NameError)
    assert answers(save) == []
    inference_with_data(rows_of(12), good, save, 2)
    assert answers(save) == EXPECTED


def test_a_run_stops_after_three_batches_of_which_no_row_works(save):
    batcher, calls = failing_on(*[f"q{i}" for i in range(12)])
    with pytest.raises(GenerationError, match="no answer to this"):
        inference_with_data(rows_of(12), batcher, save, 2)
    assert {query for call in calls for query in call} == {f"q{i}" for i in range(6)}


def test_rows_that_fail_at_the_beginning_are_booked_once_another_works(save):
    batcher, _ = failing_on("q0", "q1", "q2", "q3")
    assert inference_with_data(rows_of(12), batcher, save, 2).failed == 4
    assert answers(save) == [(i, None) for i in range(4)] + EXPECTED[4:]


def test_too_few_rows_for_three_batches_stop_as_well(save):
    with pytest.raises(GenerationError, match="no row could be answered"):
        inference_with_data(rows_of(1), failing_on("q0")[0], save)


def test_a_stretch_of_bad_rows_is_booked_as_an_earlier_row_still_works(save):
    batcher, calls = failing_on(*[f"q{i}" for i in range(4, 10)])
    assert inference_with_data(rows_of(12), batcher, save, 2).failed == 6
    assert calls.count(["q3"]) == 1  # asked again, when six rows after it had failed
    assert [response for _, response in answers(save)][4:10] == [None] * 6


def test_what_stops_working_midway_ends_the_run_and_books_no_row(save):
    asked = []

    def batcher(item):
        asked.extend(item["query"])
        if len(asked) > 4:
            raise ConnectionRefusedError("nobody there")
        return good(item)

    with pytest.raises(GenerationError, match=r"not even row 3 .*row 4: ConnectionRefusedError"):
        inference_with_data(rows_of(12), batcher, save, 2)
    assert answers(save) == EXPECTED[:4]
    inference_with_data(rows_of(12), good, save, 2)
    assert answers(save) == EXPECTED


def test_a_row_that_fails_for_good_does_not_keep_a_file_from_being_finished(save):
    batcher, _ = failing_on("q5")
    inference_with_data(rows_of(12), batcher, save, 2)
    # alone in its run, it is compared with a row of the file
    assert inference_with_data(rows_of(12), batcher, save, 2, retry_failed=True).failed == 1


def died() -> Exception:
    return EngineDiedError("the vLLM engine died: killed")


def own_engine_of_vllm() -> Exception:
    return type("EngineDeadError", (Exception,), {})("EngineCore encountered an issue")


def fault_of_the_device() -> Exception:
    return torch.AcceleratorError("CUDA error: device-side assert triggered")


def wrapped() -> Exception:
    error = RuntimeError("something else")
    error.__cause__ = died()
    return error


@pytest.mark.parametrize(
    "kind", [died, own_engine_of_vllm, fault_of_the_device, BrokenProcessPool, wrapped]
)
def test_an_engine_that_is_gone_ends_the_run_at_once(save, kind):
    calls = []

    def batcher(item):
        calls.append(item["query"])
        if len(calls) == 3:
            raise kind()
        return good(item)

    with pytest.raises(GenerationError, match=r"stopped at row 4: .*Make a new predictor"):
        inference_with_data(rows_of(12), batcher, save, 2)
    assert calls == [["q0", "q1"], ["q2", "q3"], ["q4", "q5"]]
    assert answers(save) == EXPECTED[:4]
    inference_with_data(rows_of(12), good, save, 2)
    assert answers(save) == EXPECTED


def test_a_finished_file_says_that_nothing_is_left_to_do(save, caplog):
    inference_with_data(rows_of(4), failing_on("q1")[0], save, 2)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        inference_with_data(rows_of(4), good, save, 2)
    assert "all 4 rows were already answered, by a model that was not recorded" in caplog.text
    assert "retry_failed=True" in caplog.text
