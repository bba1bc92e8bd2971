"""Several threads: on one predictor, with a trainer each, and on one run."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from tiny_task import TinyTask, make_rows, same

from main.errors import ConfigError, GenerationError
from main.predictor.hf import Predictor
from main.trainer.loop import opening

OPTIONS: dict[str, Any] = {"num_epochs": 2, "save_strategy": "epoch"}


def task() -> TinyTask:
    return TinyTask(make_rows(10), make_rows(3, 1), dropout=0.3)


def in_threads(*works: Callable[[], Any]) -> list[Any]:
    """What each returns or raises; all begin at once."""
    found: list[Any] = [None] * len(works)
    start = threading.Barrier(len(works))

    def do(place: int) -> None:
        start.wait()
        try:
            found[place] = works[place]()
        except Exception as error:
            found[place] = error

    threads = [threading.Thread(target=do, args=(i,), daemon=True) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    return found


# -- trainers


@pytest.fixture
def alone(tmp_path):
    """Two runs, one after the other; the second in another precision."""
    found = task(), task()
    list(found[0].start(tmp_path / "1", **OPTIONS))
    list(found[1].start(tmp_path / "2", seed=8, bf16=True, **OPTIONS))
    return found


def test_two_runs_that_go_on_in_turn_come_to_the_bits_of_each_alone(tmp_path, alone):
    one, two = task(), task()
    first = one.start(tmp_path / "3", **OPTIONS)
    second = two.start(tmp_path / "4", seed=8, bf16=True, **OPTIONS)
    next(first), next(second)
    list(second)
    list(first)  # the second's end has taken nothing from it
    assert same(one, alone[0]) and same(two, alone[1])


def test_two_trainers_in_two_threads_come_to_the_bits_of_each_alone(tmp_path, alone):
    one, two = task(), task()
    results = in_threads(
        lambda: list(one.start(tmp_path / "3", **OPTIONS)),
        lambda: list(two.start(tmp_path / "4", seed=8, bf16=True, **OPTIONS)),
    )
    assert [[result.epoch for result in found] for found in results] == [[1, 2], [1, 2]]
    assert same(one, alone[0]) and same(two, alone[1])


def test_a_run_that_fails_in_one_thread_leaves_the_other_as_it_is(tmp_path, alone):
    one, broken = task(), task()
    broken.loss = None  # type: ignore[assignment, method-assign]
    fine, error = in_threads(
        lambda: list(one.start(tmp_path / "3", **OPTIONS)),
        lambda: list(broken.start(tmp_path / "4", seed=8, bf16=True, **OPTIONS)),
    )
    assert len(fine) == 2 and isinstance(error, TypeError)
    assert same(one, alone[0])


def test_a_run_closed_by_another_thread_in_the_middle_of_a_step_goes_on(tmp_path, alone):
    one, in_a_step, go_on = task(), threading.Event(), threading.Event()
    run = one.start(tmp_path / "3", **OPTIONS)

    def wait(*_: Any) -> None:
        in_a_step.set()
        go_on.wait(60)

    hook = one.model.register_forward_pre_hook(wait)

    def close() -> None:
        in_a_step.wait(60)
        hook.remove()
        try:
            run.close()
        finally:
            go_on.set()

    results, error = in_threads(lambda: list(run), close)
    assert isinstance(error, ValueError) and "already executing" in str(error)
    assert len(results) == 2 and same(one, alone[0])


def test_a_run_that_waits_at_its_yield_may_be_closed_by_another_thread(tmp_path):
    run = task().start(tmp_path, **OPTIONS)
    next(run)
    assert in_threads(run.close) == [None]
    resumed = task().start(tmp_path, resume_from_checkpoint="auto", **OPTIONS)
    assert [result.epoch for result in resumed] == [2]  # the folder is free


def test_a_run_that_is_broken_off_while_it_opens_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(opening, "make_schedule", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(task().start(tmp_path, **OPTIONS))
    results = list(task().start(tmp_path, bf16=True, **OPTIONS))  # another precision
    assert len(results) == 2


def test_what_a_run_has_opened_is_closed_though_one_part_of_it_fails(tmp_path):
    class Failing(TinyTask):
        def close(self) -> None:
            raise OSError("a server is gone")

    failing = Failing(make_rows(6))
    with pytest.raises(OSError, match="a server is gone"):
        list(failing.start(tmp_path, **OPTIONS))
    assert len(list(task().start(tmp_path, bf16=True, **OPTIONS))) == 2


# -- predictors

ASKED = [f"{n}. Tell me about cats{' and dogs' * n}." for n in range(4)]


@pytest.fixture(scope="module")
def predictor(tiny_model_path):
    return Predictor(tiny_model_path)


def streamed(predictor: Predictor, query: Any, **options: Any) -> list[str]:
    items = list(predictor.predict_stream(query, max_new_tokens=12, **options))
    texts = items[-1][1]
    assert ["".join(new[i] for new, _ in items) for i in range(len(texts))] == texts
    return texts


def test_four_threads_on_one_predictor_get_the_answers_of_one_after_the_other(predictor):
    sampled = {"temperature": 1.0, "seed": 3}

    def whole(number: int) -> list[str]:
        return predictor(ASKED[: number + 1], max_new_tokens=12, **sampled)

    works: list[Callable[[], Any]] = [
        lambda: whole(3),
        lambda: streamed(predictor, ASKED[1]),
        lambda: streamed(predictor, ASKED[2], repetition_penalty=1.3, **sampled),
        lambda: [a.token_ids for a in predictor.predict_with_logprobs(ASKED, max_new_tokens=9)],
    ]
    one_after_the_other = [work() for work in works]
    for _ in range(3):
        assert in_threads(*works) == one_after_the_other


def test_an_error_in_one_thread_spoils_no_other(predictor):
    expected = predictor(ASKED[0], max_new_tokens=12)
    too_long, unknown, *answers = in_threads(
        lambda: predictor("word " * 2000),
        lambda: predictor("a", no_such_option=1),
        lambda: predictor(ASKED[0], max_new_tokens=12),
        lambda: streamed(predictor, ASKED[0]),
    )
    assert isinstance(too_long, GenerationError) and isinstance(unknown, ConfigError)
    assert answers == [expected, expected]


def test_streams_that_are_taken_in_turn_do_not_mix(predictor):
    expected = [predictor(query, max_new_tokens=12) for query in ASKED]
    streams = [predictor.predict_stream(query, max_new_tokens=12) for query in ASKED]
    last = {place: [""] for place in range(len(streams))}
    while streams_left := [i for i, s in enumerate(streams) if s.gi_frame]:
        for i in streams_left:
            _, last[i] = next(streams[i], (None, last[i]))
    assert list(last.values()) == expected


def test_a_stream_closed_by_another_thread_while_it_computes_goes_on(predictor):
    in_a_step, go_on = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        in_a_step.set()
        go_on.wait(60)

    expected = predictor(ASKED[0], max_new_tokens=12)
    hook = predictor.model.get_input_embeddings().register_forward_pre_hook(wait)
    stream = predictor.predict_stream(ASKED[0], max_new_tokens=12)

    def close() -> None:
        in_a_step.wait(60)
        hook.remove()
        try:
            stream.close()
        finally:
            go_on.set()

    items, error = in_threads(lambda: list(stream), close)
    assert isinstance(error, ValueError) and "already executing" in str(error)
    assert items[-1][1] == expected
