"""Files as they are found: whatever is in them, nothing but an error of ours comes out."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from main.errors import ConfigError, DataError, MainError, MissingFileError
from main.evaluation.items import items_of, read_items
from main.loaders import resolve, streams
from main.loaders.files import read_rows
from main.loaders.strict_json import DEEPEST, MOST_DIGITS, MOST_KEYS

REFUSED = {
    '{"x": ' + "9" * 5000 + "}": r"a number has 5000 digits, 9999999999\.\.\.; write it as text",
    '{"x": -' + "9" * 5000 + "}": "a number has 5001 digits",
    '{"x": NaN}': "it has no NaN; write null, or leave the field out",
    '{"x": [-Infinity]}': "it has no -Infinity",
    '{"x": 1e999}': "the number 1e999 is beyond",
    '{"x": {"y": 1, "z": 2, "y": 1}}': "'y' stands twice in one object",
    r'{"\ud83d": 1}': "half a surrogate pair",
    '{"x": ' + "[" * 1000 + "]" * 1000 + "}": "nested too deeply",
    '{"x": ' * 200 + "1" + "}" * 200: "nested too deeply",
    '{"x": "a\tb"}': "Invalid control character at column",
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode("utf-8") if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(("row", "problem"), REFUSED.items(), ids=range(len(REFUSED)))
def test_a_row_that_would_be_read_as_something_else_is_refused_by_its_line(tmp_path, row, problem):
    lines = write(tmp_path / "a.jsonl", f'{{"x": 1}}\n{row}\n')
    with pytest.raises(DataError, match=rf"a\.jsonl line 2: .*{problem}"):
        list(read_rows(lines))
    array = write(tmp_path / "a.json", f'[{{"x": 1}},\n{row}]')
    with pytest.raises(DataError, match=rf"a\.json (item 2|line \d+ \(item 2\)): .*{problem}"):
        list(read_rows(array))
    registry = write(tmp_path / "present.json", row)
    with pytest.raises(DataError, match=rf"present\.json.*: .*{problem}"):
        resolve("x", registry)


def test_items_of_an_array_behind_a_refused_one_are_read(tmp_path):
    path = write(
        tmp_path / "a.json", '[{"x": NaN}, {"x": ' + "1" * 2000 + '}, {"x": 3}, {"x": 1e999}]'
    )
    bad: list[int] = []
    assert list(read_rows(path, on_bad=lambda number, _: bad.append(number))) == [(3, {"x": 3})]
    assert bad == [1, 2, 4]


def test_keys_lines_and_arrays_are_bounded(tmp_path, monkeypatch):
    double = "{" + ", ".join(f'"{i}": 0' for i in range(MOST_KEYS - 1)) + ', "7": 0}'
    many = "{" + ", ".join(f'"{i}": 0' for i in range(MOST_KEYS + 1)) + "}"
    problems: list[str] = []
    path = write(tmp_path / "a.jsonl", f'{double}\n{many}\n{{"x": 1}}\n')
    read = read_rows(path, on_bad=lambda _, problem: problems.append(problem))
    assert list(read) == [(3, {"x": 1})]
    assert problems[0].startswith("'7' stands twice in one object")
    assert problems[1] == "an object has 100,001 keys, and 100,000 are the most."
    monkeypatch.setattr(streams, "LONGEST_LINE", 100)
    long = '{"x": "' + "a" * 1000 + '"}'
    path = write(tmp_path / "b.jsonl", f'{{"x": 1}}\n{long}\n{{"x": 2}}\n{long}')
    read = read_rows(path, on_bad=lambda number, problem: problems.append(f"{number}: {problem}"))
    assert [number for number, _ in read] == [1, 3]
    bad = "the line has more than 100 bytes, which is no row."
    assert problems[2:] == [f"2: {bad}", f"4: {bad}"]
    monkeypatch.setattr(streams, "LARGEST_ARRAY", 10)
    with pytest.raises(DataError, match=r"10 are the most of an array.*one JSON object a line"):
        list(read_rows(write(tmp_path / "a.json", '[{"x": 1}, {"x": 2}]')))


def test_what_is_large_and_yet_json_is_read(tmp_path):
    deep = '{"x": ' + "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1) + "}"
    rows = [deep, '{"x": ' + "7" * MOST_DIGITS + "}", '{"x": "' + "长" * 1_000_000 + '"}']
    rows += ['{"x": 1.7e308, "y": 1e-999, "z": -0.0}', r'{"x": "\ud83d\ude00"}']
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    read = [row for _, row in read_rows(path)]
    assert read == [json.loads(row) for row in rows]


def test_names_that_the_system_cannot_have_are_files_that_are_not_there(tmp_path):
    for name in ("x" * 5000, "a\0b", "x" * 5000 + ".json"):
        registry = write(tmp_path / "present.json", json.dumps({"d": {"train": name}}))
        with pytest.raises(MissingFileError):
            resolve("d", registry)
        with pytest.raises((MissingFileError, ConfigError)):
            resolve(name, registry)
        with pytest.raises(MissingFileError):
            read_rows(name)
    with pytest.raises(MissingFileError, match="is a folder"):
        resolve("d", tmp_path)


SEEDS = [
    '{"conversations": [{"role": "user", "content": "你好😀"}, {"role": "assistant"}]}',
    '{"query": "q", "history": [{"role": "user", "content": "x"}], "answer": 1.5e3, "id": -7}',
    '{"prompt": [{"role": "user", "content": [{"type": "text", "text": "t"}]}], "answer": ["g"]}',
    '{"context": "c", "target": "t", "n": null, "b": true}',
]
PIECES = [
    *["NaN", "Infinity", "1e999", "9" * 5000, "[" * 2000, "{", "}", "[", "]", ",", ":", '"', "\\"],
    *["\\ud83d", "\\u0000", "\0", "\ufeff", "\n", "\r", "\u2028", "null", "true", "-", "0x1", "''"],
]  # fmt: skip


def spoilt(rng: random.Random, text: str) -> bytes:
    """Some pieces put in, taken out or doubled; and now and then a byte that is no UTF-8."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(text))
        end = min(start + rng.choice([0, 0, 1, 5]), len(text))
        text = text[:start] + rng.choice([*PIECES, text[start:end] * 2]) + text[end:]
    data = text.encode("utf-8")
    if rng.random() < 0.1:
        place = rng.randrange(len(data) + 1)
        data = data[:place] + bytes([rng.randrange(128, 256)]) + data[place:]
    return data


@pytest.mark.parametrize("array", [False, True])
def test_of_spoilt_files_come_rows_or_an_error_of_ours(tmp_path, array):
    rng, refused = random.Random(0), 0
    for _ in range(1500):
        rows = rng.sample(SEEDS, k=rng.randint(1, 3))
        data = spoilt(rng, f"[{','.join(rows)}]" if array else "\n".join(rows))
        path = write(tmp_path / "a.json", data)
        try:
            for _, row in read_rows(path):
                json.dumps(row, ensure_ascii=False, allow_nan=False).encode("utf-8")
        except MainError:
            refused += 1
        for read in (lambda: read_items(path), lambda: resolve("query", path)):  # noqa: B023
            try:
                read()
            except MainError as error:
                str(error).encode("utf-8")
    assert 500 < refused < 1500


def value(rng: random.Random, depth: int = 0) -> Any:
    """Anything that a row in memory may hold."""
    plain = [None, True, 0, -1.5, "", " ", "text", "user", "\ud83d", float("nan"), 10**400, b"x"]
    if depth > 3 or rng.random() < 0.5:
        return rng.choice(plain)
    if rng.random() < 0.5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    names = ["role", "content", "type", "text", "tool_calls", "image", "user", "x", 3]
    return {rng.choice(names): value(rng, depth + 1) for _ in range(rng.randint(0, 3))}


def test_of_any_row_in_memory_comes_a_question_or_an_error_of_ours():
    rng, asked = random.Random(1), 0
    fields = ["conversations", "query", "history", "prompt", "answer", "context", "gold_answers"]
    fields += ["bad_answers", "label", "completion", "tools", "system", "images", "target", "other"]
    for _ in range(3000):
        row = {rng.choice(fields): value(rng) for _ in range(rng.randint(0, 5))}
        with contextlib.suppress(MainError):
            asked += len(items_of([row]))
    assert asked > 100
