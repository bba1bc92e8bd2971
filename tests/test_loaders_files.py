"""Reading JSON arrays and JSON Lines row by row."""

import json
import tracemalloc
from pathlib import Path

import pytest

from main.errors import DataError, MissingFileError
from main.loaders.files import read_rows, row_word


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def test_lines_are_numbered_as_an_editor_shows_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '\ufeff{"x": "你好"}\r\n\n   \n{"x": 2}')
    assert list(read_rows(path)) == [(1, {"x": "你好"}), (4, {"x": 2})]
    assert row_word(path) == "line"


def test_items_of_an_array_are_numbered_from_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '\ufeff\n\n [ {"x": [1, {"y": "]"}]} ,\n{"x": 2}\n]\n\n')
    assert list(read_rows(path)) == [(1, {"x": [1, {"y": "]"}]}), (2, {"x": 2})]
    assert row_word(path) == "item"


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff", "[]", " [ ] "])
def test_an_empty_file_has_no_rows(tmp_path: Path, text: str) -> None:
    assert list(read_rows(write(tmp_path / "a.json", text))) == []


def test_a_line_separator_inside_a_string_does_not_split_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"x": "a\u2028b\x85c"}\n')
    assert list(read_rows(path)) == [(1, {"x": "a\u2028b\x85c"})]


def test_malformed_json_names_file_and_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"x": 1}\n\n{"x": 2,}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 3: not valid JSON: .* column 9"):
        list(read_rows(path))


def test_malformed_json_in_an_array_names_line_and_item(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[\n{"x": 1},\n{"x": oops}\n]')
    with pytest.raises(DataError, match=r"a\.json line 3 \(item 2\): not valid JSON"):
        list(read_rows(path))


@pytest.mark.parametrize("text", ['[{"x": 1}', '[{"x": 1} {"x": 2}]', '[{"x": 1},]', "[", '["x"'])
def test_a_broken_array_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match="line 1"):
        list(read_rows(write(tmp_path / "a.json", text)))


def test_text_after_an_array_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '[{"x": 1}]\n{"x": 2}')
    with pytest.raises(DataError, match=r"line 2: .*stands after the end of the JSON array"):
        list(read_rows(path))


def test_one_object_over_many_lines_says_what_a_file_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{\n"x": 1\n}')
    with pytest.raises(DataError, match=r"line 1: .*JSON array, or has one JSON object a line"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("text", "row"), [('{"x": 1}\n"oops"', "line 2"), ('[{"x": 1}, "oops"]', "item 2")]
)
def test_a_row_that_is_no_object_is_refused(tmp_path: Path, text: str, row: str) -> None:
    with pytest.raises(DataError, match=rf'{row}: a row must be a JSON object .* str "oops"'):
        list(read_rows(write(tmp_path / "a.json", text)))


@pytest.mark.parametrize("opening", [b'{"x": 1}\n', b'[{"x": 1},\n'])
def test_bytes_that_are_not_utf8_name_their_line(tmp_path: Path, opening: bytes) -> None:
    path = write(tmp_path / "a.json", opening + '{"x": "你好"}'.encode("gbk"))
    with pytest.raises(DataError, match=r"a\.json line 2: byte 0xc4 is not UTF-8"):
        list(read_rows(path))


def test_half_an_emoji_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", r'{"x": "\ud83d\ude00"}' + "\n" + r'{"x": "\ud83d"}')
    rows = read_rows(path)
    assert next(rows) == (1, {"x": "😀"})
    with pytest.raises(DataError, match=r"line 2: '\\ud83d' is half a surrogate pair"):
        next(rows)


def test_bad_lines_can_be_gathered_while_the_good_ones_follow(tmp_path: Path) -> None:
    bad: list[int] = []
    path = write(tmp_path / "a.jsonl", b'{"x": 1}\n{\n3\n"\xff"\n{"x": 5}')
    rows = list(read_rows(path, on_bad=lambda number, problem: bad.append(number)))
    assert rows == [(1, {"x": 1}), (5, {"x": 5})]
    assert bad == [2, 3, 4]


def test_a_missing_file_is_refused_at_the_call(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.json does not exist"):
        read_rows(tmp_path / "nowhere.json")
    with pytest.raises(MissingFileError, match="is a folder"):
        read_rows(tmp_path)


@pytest.mark.parametrize("array", [False, True])
def test_reading_holds_one_row_at_a_time(tmp_path: Path, array: bool) -> None:
    lines = [json.dumps({"x": list(range(100))}) for _ in range(2_000)]
    path = write(tmp_path / "a.json", f"[{','.join(lines)}]" if array else "\n".join(lines))
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # As Python objects the rows take 2,000 x (100 x 8 bytes of list, plus the dict) > 1.6 MB; the
    # text is 0.8 MB, and an array's is there twice while it is decoded.
    assert count == 2_000
    assert peak < (2.5 if array else 0.3) * 1e6
