"""Batch inference in one process: formats, order, interruption, failing rows, refusals."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from failing_disk import Disk

from main.errors import ConfigError, DataError, DiskError, MissingFileError
from main.evaluation.inferences import inference_with_data, inference_with_data_path


class Echo:
    """A batcher that answers "re: <query>", remembers its calls and can be told to fail."""

    def __init__(self, fail_on=(), stop_at=None, error=RuntimeError):
        self.calls, self.items = [], []
        self.fail_on, self.stop_at, self.error = fail_on, stop_at, error

    def __call__(self, item):
        if self.stop_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(list(item["query"]))
        self.items.append(item)
        if any(query in self.fail_on for query in item["query"]):
            raise self.error("no answer to this")
        return [f"re: {query}" for query in item["query"]]


def rows_of(count):
    return [{"query": f"q{i}", "history": []} for i in range(count)]


def write(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.fixture
def save(tmp_path) -> Path:
    return tmp_path / "out" / "responses.jsonl"


def test_rows_come_out_in_input_order_with_query_history_response_and_answer(tmp_path, save):
    rows = [{"query": f"q{i}", "history": [user("a"), assistant("b")]} for i in range(5)]
    rows[3]["answer"] = "gold"
    echo = Echo()
    summary = inference_with_data_path(write(tmp_path / "d.jsonl", rows), echo, save, 2)
    assert echo.calls == [["q0", "q1"], ["q2", "q3"], ["q4"]]
    assert read(save)[3] == {
        "idx": 3,
        "query": "q3",
        "history": [user("a"), assistant("b")],
        "response": "re: q3",
        "answer": "gold",
    }
    assert list(read(save)[0]) == ["idx", "query", "history", "response"]
    assert [line["idx"] for line in read(save)] == [0, 1, 2, 3, 4]
    assert summary[:3] == (5, 0, save)
    assert sorted(path.name for path in save.parent.iterdir()) == ["responses.jsonl"]


def test_one_line_is_printed_at_the_end(save, capsys):
    inference_with_data(rows_of(3), Echo(fail_on=["q1"]), save, 2)
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    assert "responses.jsonl: 3 rows, 1 failed, 3 answered now in " in printed.out


@pytest.mark.parametrize(
    ("row", "query", "history", "answer"),
    [
        (
            {"conversations": [user("a"), assistant("b"), user("c"), assistant("d")]},
            "c",
            [user("a"), assistant("b")],
            "d",
        ),
        (
            {"conversations": [{"role": "system", "content": "s"}, user("c")]},
            "c",
            [{"role": "system", "content": "s"}],
            None,
        ),
        ({"context": "Q: 1+1 A: ", "target": "2"}, "Q: 1+1 A: ", [], "2"),
        ({"conversations": [user("c")], "gold_answers": "g", "bad_answers": "b"}, "c", [], "g"),
        (
            {"conversations": [user("c"), assistant("d")], "gold_answers": ["g", "h"]},
            "c",
            [],
            ["g", "h"],
        ),
        ({"prompt": [user("c")], "answer": "g"}, "c", [], "g"),
        ({"prompt": [user("c")], "anwer": "g"}, "c", [], "g"),
        ({"prompt": "c"}, "c", [], None),
        ({"query": "c"}, "c", [], None),
    ],
    ids=["chat", "open", "pure", "dpo", "rlhf", "grpo", "anwer", "text", "plain"],
)
def test_every_row_format_is_read(tmp_path, save, row, query, history, answer):
    echo = Echo()
    inference_with_data_path(write(tmp_path / "d.jsonl", [row]), echo, save)
    assert echo.items == [{"query": [query], "history": [history]}]
    assert read(save)[0].get("answer") == answer


def test_turn_with_an_image_or_of_a_tool_stays_a_message(save):
    picture = {"role": "user", "content": [{"type": "image", "image": "x.jpg"}]}
    tool = {"role": "tool", "content": "42"}
    rows = [
        {"conversations": [picture, assistant("a cat")]},
        {"conversations": [user("a"), assistant("b"), tool, assistant("c")]},
    ]
    echo = Echo()
    inference_with_data(rows, echo, save)
    assert echo.items[0]["query"] == [picture, tool]
    assert echo.items[0]["history"] == [[], [user("a"), assistant("b")]]


def test_json_array_with_bom_and_chinese_is_read_and_written_readably(tmp_path, save):
    path = tmp_path / "d.json"
    path.write_text(json.dumps([{"query": "你好", "history": []}]), encoding="utf-8-sig")
    inference_with_data_path(path, Echo(), save)
    assert '"query": "你好"' in save.read_text(encoding="utf-8")
    lines = tmp_path / "d.jsonl"
    lines.write_text('\ufeff{"query": "a"}\n\n{"query": "b"}\n', encoding="utf-8")
    assert inference_with_data_path(lines, Echo(), save, overwrite=True).rows == 2


def test_line_separators_and_half_characters_in_responses_keep_one_line_a_row(save):
    texts = ["one\u2028two\nthree", "cut \ud83d"]
    inference_with_data(rows_of(2), lambda item: texts, save)
    lines = save.read_bytes().decode("utf-8").split("\n")
    assert [json.loads(line)["response"] for line in lines[:-1]] == texts
    assert lines[-1] == ""


def test_batcher_may_change_what_it_gets(save):
    def spoil(item):
        item["history"][0].append("x")
        item["history"][0][0]["content"] = "changed"
        return ["done"] * len(item["query"])

    row = {"query": "q", "history": [user("a"), assistant("b")]}
    inference_with_data([row], spoil, save)
    assert read(save)[0]["history"] == [user("a"), assistant("b")] == row["history"]


def test_lines_are_on_disk_when_the_next_batch_starts(save):
    seen = []

    def batcher(item):
        seen.append(len(read(save)) if save.exists() else 0)
        return ["x"] * len(item["query"])

    inference_with_data(rows_of(5), batcher, save, 2)
    assert seen == [0, 2, 4]


def test_interrupted_run_continues_without_redoing_or_duplicates(save, caplog):
    with pytest.raises(KeyboardInterrupt):
        inference_with_data(rows_of(7), Echo(stop_at=2), save, 2)
    assert "it continues" in caplog.text
    assert [line["idx"] for line in read(save)] == [0, 1, 2, 3]
    echo = Echo()
    # Another batch size is fine.
    summary = inference_with_data(rows_of(7), echo, save, 3)
    assert echo.calls == [["q4", "q5", "q6"]]
    assert [line["idx"] for line in read(save)] == list(range(7))
    assert summary.rows == 7


def test_half_written_last_line_is_redone(save):
    with pytest.raises(KeyboardInterrupt):
        inference_with_data(rows_of(5), Echo(stop_at=2), save, 2)
    save.write_bytes(save.read_bytes()[:-9])
    echo = Echo()
    inference_with_data(rows_of(5), echo, save, 2)
    assert echo.calls == [["q3", "q4"]]
    assert [line["response"] for line in read(save)] == [f"re: q{i}" for i in range(5)]


def test_process_killed_by_force_leaves_a_file_that_continues(tmp_path, save):
    data = write(tmp_path / "d.jsonl", rows_of(50))
    code = (
        "import sys, time\n"
        "from main.evaluation.inferences import inference_with_data_path as run\n"
        "def slow(item):\n"
        "    time.sleep(0.05)\n"
        "    return ['re: ' + q for q in item['query']]\n"
        "run(sys.argv[1], slow, sys.argv[2], 2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(data), str(save)])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not save.exists() or save.stat().st_size < 400):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(read(save))
    assert 0 < done < 50
    echo = Echo()
    inference_with_data_path(data, echo, save, 2)
    assert sum(map(len, echo.calls)) == 50 - done
    assert [line["response"] for line in read(save)] == [f"re: q{i}" for i in range(50)]


def test_finished_run_is_left_alone(save):
    inference_with_data(rows_of(3), Echo(), save)
    before = save.read_bytes()
    echo = Echo()
    assert inference_with_data(rows_of(3), echo, save).rows == 3
    assert echo.calls == []
    assert save.read_bytes() == before


def test_failing_row_does_not_lose_its_neighbours(save, caplog):
    echo = Echo(fail_on=["q2"])
    summary = inference_with_data(rows_of(6), echo, save, 4)
    assert echo.calls == [["q0", "q1", "q2", "q3"], ["q0"], ["q1"], ["q2"], ["q3"], ["q4", "q5"]]
    lines = read(save)
    assert lines[2]["response"] is None
    assert lines[2]["error"] == "RuntimeError: no answer to this"
    assert [line["idx"] for line in lines if line["response"]] == [0, 1, 3, 4, 5]
    assert all("error" not in line for line in lines if line["response"])
    assert (summary.rows, summary.failed) == (6, 1)
    assert "Row 2 failed: RuntimeError: no answer to this" in caplog.text


def test_only_the_first_of_many_failures_is_shown(save, caplog):
    summary = inference_with_data(rows_of(6), Echo(fail_on=["q1", "q2", "q5"]), save, 2)
    assert summary.failed == 3
    assert [record.args[0] for record in caplog.records] == [1]


def test_failed_rows_stay_failed_unless_asked_for_again(save):
    inference_with_data(rows_of(4), Echo(fail_on=["q1"]), save, 2)
    echo = Echo()
    assert inference_with_data(rows_of(4), echo, save, 2).failed == 1
    assert echo.calls == []
    assert inference_with_data(rows_of(4), echo, save, 2, retry_failed=True).failed == 0
    assert echo.calls == [["q1"]]
    assert [(line["idx"], line["response"]) for line in read(save)] == [
        (i, f"re: q{i}") for i in range(4)
    ]
    assert all("error" not in line for line in read(save))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (["a", "b"], "returned 2 responses for 3 queries"),
        ("abc", "returned a str; it must return a list with one str"),
        (None, "returned a NoneType"),
        (["a", 1, "c"], "returned a list with a int in it"),
    ],
)
def test_wrong_responses_end_the_run_and_name_both_numbers(save, returned, message):
    with pytest.raises(ConfigError, match=message):
        inference_with_data(rows_of(6), lambda item: returned, save, 3)
    assert inference_with_data(rows_of(6), Echo(), save, 3).rows == 6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (rows_of(4), "belongs to another input: 5 rows then, 4 now"),
        ([*rows_of(5), {"query": "new"}], "belongs to another input: 5 rows then, 6 now"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_input_of_another_length_is_refused(save, rows, message, finished):
    with contextlib.suppress(KeyboardInterrupt):
        inference_with_data(rows_of(5), Echo(stop_at=None if finished else 1), save, 2)
    before = save.read_bytes()
    with pytest.raises(DataError, match=message):
        inference_with_data(rows, Echo(), save, 2)
    assert save.read_bytes() == before
    assert inference_with_data(rows, Echo(), save, 2, overwrite=True).rows == len(rows)
    assert len(read(save)) == len(rows)


def test_changed_rows_are_refused(save):
    rows = rows_of(5)
    inference_with_data(rows, Echo(), save, 2)
    rows[3] = {"query": "q3", "answer": "another gold"}
    with pytest.raises(DataError, match="line 4 answers another question than row 3"):
        inference_with_data(rows, Echo(), save, 2)
    with pytest.raises(KeyboardInterrupt):
        inference_with_data(rows, Echo(stop_at=1), save, 2, overwrite=True)
    # A row that was not yet answered counts as well.
    with pytest.raises(DataError, match="5 rows then, 5 now, of other content"):
        inference_with_data(rows_of(5), Echo(), save, 2)


def test_file_of_something_else_is_never_touched(save):
    save.parent.mkdir()
    save.write_text("my notes, without a newline")
    with pytest.raises(DataError, match=r"line 1 is not a line of responses: b'my notes"):
        inference_with_data(rows_of(2), Echo(), save)
    assert save.read_text() == "my notes, without a newline"
    assert [path.name for path in save.parent.iterdir()] == ["responses.jsonl"]


def test_second_run_on_the_same_file_is_refused(save):
    def nested(item):
        with pytest.raises(ConfigError, match="Another run is writing"):
            inference_with_data(rows_of(2), Echo(), save)
        return ["x"] * len(item["query"])

    inference_with_data(rows_of(2), nested, save)
    assert [line["response"] for line in read(save)] == ["x", "x"]


def test_full_disk_ends_the_run_and_loses_nothing(save, monkeypatch):
    from main.evaluation import book

    class Full(book.Appender):
        def append(self, lines):
            if self._stream.tell() > 100:
                self._stream.write(lines[0][:20])
                raise OSError(28, "No space left on device")
            super().append(lines)

    monkeypatch.setattr(book, "Appender", Full)
    told = (
        r"could not be written: the disk is full .*Free some space .*was written earlier is intact"
    )
    with pytest.raises(DiskError, match=told):
        inference_with_data(rows_of(9), Echo(), save, 2)
    monkeypatch.undo()
    echo = Echo()
    inference_with_data(rows_of(9), echo, save, 2)
    assert ["q0", "q1"] not in echo.calls
    assert [line["response"] for line in read(save)] == [f"re: q{i}" for i in range(9)]


@pytest.mark.parametrize("retry", [False, True])
def test_any_file_operation_of_a_run_may_fail(tmp_path, monkeypatch, retry):
    """A run that goes on from parts of three processes, one with a line cut short."""
    disk, rows = Disk(monkeypatch), rows_of(8)
    expected = [f"re: q{i}" for i in range(8)]
    for allowed in range(1000):
        save = tmp_path / f"{allowed}.jsonl"
        with pytest.raises(KeyboardInterrupt):
            inference_with_data(rows, Echo(fail_on=["q2"], stop_at=4), save, 2)
        lines = save.read_bytes().splitlines(keepends=True)
        parts = tmp_path / f"{allowed}.jsonl.parts"
        save.write_bytes(lines[1])
        (parts / "part-0.jsonl").write_bytes(lines[2] + lines[0])
        (parts / "part-1.jsonl").write_bytes(lines[3][:-5])
        disk.left = allowed
        with contextlib.suppress(DiskError):
            inference_with_data(rows, Echo(), save, 2, retry_failed=retry)
        failed, disk.left = disk.left is None, None
        echo = Echo()
        assert inference_with_data(rows, echo, save, 3, retry_failed=True).failed == 0
        assert [line["response"] for line in read(save)] == expected
        assert not {"q0", "q1"} & {query for call in echo.calls for query in call}
        assert not parts.exists()
        if not failed:
            break
    assert allowed > 10


def test_all_bad_rows_are_named_at_once_before_any_work(tmp_path, save):
    path = tmp_path / "d.jsonl"
    bad = [
        '{"query": "fine"}',
        "{broken",
        '{"text": "x"}',
        '{"conversations": [{"role": "usr", "content": "x"}]}',
        '{"conversations": [{"role": "assistant", "content": "x"}]}',
        '{"query": "x", "history": [["a", "b"]]}',
        '{"context": 3}',
    ]
    path.write_text("\n".join(bad))
    echo = Echo()
    with pytest.raises(DataError) as caught:
        inference_with_data_path(path, echo, save)
    text = str(caught.value)
    assert "6 of 7 rows cannot be used" in text
    assert "line 2: not valid JSON" in text
    assert "line 3: a row needs one of 'conversations', 'prompt', 'context', 'query'" in text
    assert "line 4: conversations[0] has the role 'usr'" in text
    assert "line 5: 'conversations' has an answer and no user turn before it" in text
    assert "line 6: history[0] must be an object with 'role' and 'content'; found list" in text
    assert "line 7: 'context' must be a string; found int" in text
    assert echo.calls == []
    assert not save.exists()


def test_arguments_are_checked_before_any_work(tmp_path, save):
    data = write(tmp_path / "d.jsonl", rows_of(2))
    with pytest.raises(ConfigError, match="batch_size=0 must be an integer of at least 1"):
        inference_with_data_path(data, Echo(), save, 0)
    with pytest.raises(ConfigError, match=r"batcher='x' must be a function"):
        inference_with_data_path(data, "x", save)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is data_path itself"):
        inference_with_data_path(data, Echo(), data)
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        inference_with_data_path(data, Echo(), tmp_path)
    with pytest.raises(MissingFileError, match=r"none\.json' does not exist"):
        inference_with_data_path(tmp_path / "none.json", Echo(), save)
    with pytest.raises(DataError, match="has no rows"):
        inference_with_data([], Echo(), save)


def test_progress_goes_to_standard_error_only_when_wanted(save, capsys):
    inference_with_data(rows_of(4), Echo(), save, 2)
    assert capsys.readouterr().err == ""
    inference_with_data(rows_of(4), Echo(), save, 2, overwrite=True, progress=True)
    assert "rows" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"out\.jsonl could not be written: '.*file' is a file"):
        inference_with_data(rows_of(2), Echo(), tmp_path / "file" / "out.jsonl")


def test_objects_without_a_json_form_are_named_by_type(save):
    class Picture:
        pass

    rows = [{"query": {"role": "user", "content": [{"type": "image", "image": Picture()}]}}]
    inference_with_data(rows, lambda item: ["a cat"], save)
    assert read(save)[0]["query"]["content"][0]["image"] == "<Picture>"
    assert inference_with_data(rows, Echo(), save).rows == 1


def test_output_feeds_the_metrics(save):
    from main.evaluation.metrics import evaluate_generation

    rows = [{"query": "a b c d", "answer": "re: a b c d"}, {"query": "x", "answer": "re: x"}]
    inference_with_data(rows, Echo(), save)
    lines = read(save)
    scores = evaluate_generation(
        None,
        [line["answer"] for line in lines],
        [line["response"] for line in lines],
        standard=True,
        show=False,
    )
    assert [scores["chrF"], scores["BLEU"]] == pytest.approx([100, 100])


def test_tools_and_variables_of_rows_reach_the_batcher(save):
    tool = {"type": "function", "function": {"name": "look_up"}}
    asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows: list[dict[str, Any]] = [
        {"conversations": asked, "system": "Be brief."},
        {"conversations": asked, "tools": [tool]},
        {"conversations": asked, "tools": [tool["function"]]},
        {"conversations": asked, "chat_template_kwargs": {"enable_thinking": False}},
    ]
    calls = []

    def batcher(item):
        calls.append(item)
        return ["x"] * len(item["query"])

    inference_with_data(rows, batcher, save, 8)
    system = [{"role": "system", "content": "Be brief."}]
    assert calls == [
        {"query": ["q"], "history": [system]},
        {"query": ["q", "q"], "history": [[], []], "tools": [tool]},
        {"query": ["q"], "history": [[]], "enable_thinking": False},
    ]
    assert [line["answer"] for line in read(save)] == ["a"] * 4
