"""Where rows may come from: every kind of file, list and data set gives the same encoded rows."""

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from chat_templates import chat, turns

from main.dialogue.plain import PlainText
from main.errors import ConfigError, DataError, MissingFileError
from main.evaluation.items import read_items
from main.loaders import load_dataset_split, read_rows, resolve, row_word, streams
from main.loaders.sources import of_dataset, of_rows
from main.vision.image import open_image

TEMPLATE = chat("smollm2")
ROWS: list[dict[str, Any]] = [
    {"conversations": turns('Say, "a";\nor b', "b"), "weight": 2.0},
    {"conversations": turns("问", "答 é")},
    {"conversations": turns("c", "d", "e", "f")},
]
TEXT = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def zst(path: Path) -> None:
    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(TEXT.encode())


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(datasets.Dataset.from_list(ROWS).data.table, path)


def arrow(path: Path, new: Callable = pyarrow.ipc.new_file) -> None:
    table = datasets.Dataset.from_list(ROWS).data.table
    with pyarrow.OSFile(str(path), "wb") as stream, new(stream, table.schema) as writer:
        writer.write_table(table)


def cells(delimiter: str) -> str:
    lines = [["conversations", "weight"]]
    lines += [[json.dumps(r["conversations"]), str(r.get("weight", ""))] for r in ROWS]
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in lines]
    return "\ufeff" + "\r\n".join(delimiter.join(line) for line in quoted)


FILES: dict[str, Callable[[Path], Any]] = {
    "rows.jsonl": lambda path: path.write_text(TEXT, "utf-8"),
    "rows.json": lambda path: path.write_text(json.dumps(ROWS)),
    "rows.jsonl.gz": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "named.otherwise": lambda path: path.write_bytes(gzip.compress(TEXT.encode())),
    "rows.jsonl.zst": zst,
    "rows.parquet": parquet,
    "rows.arrow": arrow,
    "stream.arrow": lambda path: arrow(path, pyarrow.ipc.new_stream),
    "rows.csv": lambda path: path.write_text(cells(","), "utf-8"),
    "german.csv": lambda path: path.write_text(cells(";"), "utf-8"),
    "rows.tsv": lambda path: path.write_text(cells("\t"), "utf-8"),
}


def encoded(data: Any, tmp_path: Path) -> list[dict[str, Any]]:
    found = load_dataset_split(data, "LLM_Chat", TEMPLATE, cache_dir=tmp_path / "cache")
    return [{name: value for name, value in row.items() if name != "row"} for row in found]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    FILES[name](tmp_path / name)
    assert encoded(tmp_path / name, tmp_path) == encoded(ROWS, tmp_path)


def test_rows_and_data_sets_in_memory_give_the_same_rows_and_stay_as_they_are(
    tmp_path: Path,
) -> None:
    before = json.dumps(ROWS)
    dataset = datasets.Dataset.from_list(ROWS)
    expected = encoded(ROWS, tmp_path)
    assert encoded(dataset, tmp_path) == expected
    assert encoded(dataset.select([2, 0]), tmp_path) == [expected[2], expected[0]]
    assert encoded([ROWS[:1], dataset.select([1, 2])], tmp_path) == expected
    assert json.dumps(ROWS) == before


def test_pictures_in_memory_become_data_urls(tmp_path: Path) -> None:
    from PIL import Image

    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    rows = [{"prompt": "p", "images": [picture], "path": tmp_path / "x"}]
    [(_, row)] = of_rows(rows).rows(lambda number, text: pytest.fail(text))
    assert row["images"][0].startswith("data:image/png;base64,") and row["path"] == f"{tmp_path}/x"
    assert rows[0]["images"] == [picture]
    columns = datasets.Features({"images": datasets.List(datasets.Image())})
    dataset = datasets.Dataset.from_dict({"images": [[picture]]}, columns)
    [(_, row)] = of_dataset(dataset).rows(lambda number, text: pytest.fail(text))
    read = open_image(row["images"][0])
    assert read.size == (3, 2) and read.getpixel((0, 0)) == (1, 2, 3)
    bad: list[str] = []
    list(of_rows([{"x": object()}]).rows(lambda number, text: bad.append(text)))
    assert bad == ["a value of type object is none that JSON has."]


def test_a_row_is_named_by_its_line_its_record_or_its_number(tmp_path: Path) -> None:
    bad = [*ROWS[:1], {"conversations": turns("a", "")}]
    places = {"rows.jsonl": "line 2", "rows.json": "item 2"}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, bad)))
    (tmp_path / "rows.json").write_text(json.dumps(bad))
    (tmp_path / "rows.csv").write_text(
        'context,target\n"two\nlines",b\n\nc,\nd\n'
    )  # the row of line 5 is empty, line 6 has a cell too few
    table = datasets.Dataset.from_list(bad)
    table.to_parquet(str(tmp_path / "rows.parquet"))
    for name, place in (places | {"rows.parquet": "record 2"}).items():
        with pytest.raises(DataError, match=rf"{name} {place}: conversations\[1\]"):
            encoded(tmp_path / name, tmp_path)
    for data in (bad, table):
        with pytest.raises(DataError, match=r"data row 2: conversations\[1\]"):
            encoded(data, tmp_path)
    with pytest.raises(DataError, match=r"line 5: 'target' is empty(.|\n)*line 6: 1 cells under 2"):
        load_dataset_split(tmp_path / "rows.csv", "LLM_Pure", PlainText(TEMPLATE.tokenizer))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.gz", gzip.compress(TEXT.encode())[:-9], "cannot be read: Truncated"),
        ("a.parquet", b"PAR1 and no more", "is a damaged or unfinished table"),
        ("a.xlsx", b"PK\x03\x04", "save it as CSV or JSON Lines"),
        ("a.csv", b"a,a\n1,2\n", "line 1: 'a' names two columns"),
        ("a.csv", b'a,b\n1,"2\n', "line 2: not valid CSV: unexpected end of data"),
        ("a.csv", b"a,b\n\xc4\xe3,2\n", "line 2: byte 0xc4 is not UTF-8"),
    ],
)
def test_what_cannot_be_read_says_so(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(tmp_path / name))


def test_a_packed_bomb_costs_the_memory_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LONGEST_LINE", 1 << 20)
    monkeypatch.setattr(streams, "LARGEST_UNPACKED", 1 << 20)
    line, array = tmp_path / "line.jsonl.gz", tmp_path / "array.json.gz"
    line.write_bytes(gzip.compress(b'{"x": "' + b"a" * (64 << 20)))
    array.write_bytes(gzip.compress(b"[" + b" " * (64 << 20)))
    tracemalloc.start()
    with pytest.raises(DataError, match=r"line\.jsonl\.gz line 1: longer than 1 MiB"):
        list(read_rows(line))
    with pytest.raises(DataError, match=r"array\.json\.gz unpacks to more than 1 MiB.*JSON Lines"):
        list(read_rows(array))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_packed_file_is_read_a_row_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"x": "%s"}\n' % (b"a" * 1000) * 20_000))
    tracemalloc.start()
    assert sum(1 for _ in read_rows(path)) == 20_000  # 20 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_the_splits_of_a_folder_are_told_by_the_names_of_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation.jsonl"):
        (tmp_path / name).write_text(TEXT)
    (tmp_path / ".hidden.jsonl").write_text(TEXT)
    (tmp_path / "readme.md").write_text("x")
    found = resolve(tmp_path)
    assert {split: len(source.parts) for split, source in found.items()} == {"train": 2, "dev": 1}
    (tmp_path / "more.jsonl").write_text(TEXT)
    assert resolve(tmp_path).keys() == {"train", "dev"}
    assert "named after no split are not read: more.jsonl" in caplog.text
    (tmp_path / "train.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"several files for 'train': train-0.*, train\.csv"):
        resolve(tmp_path)


def test_a_folder_without_split_names_is_train_and_an_empty_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no data files"):
        resolve(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(TEXT)
    assert [part.path for part in resolve(tmp_path)["train"].parts] == [
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
    ]


def test_a_dataset_dict_has_its_splits_in_memory_and_saved(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    named = datasets.DatasetDict({"train": dataset, "validation": dataset.select([0])})
    named.save_to_disk(str(tmp_path / "saved"))
    for data in (named, tmp_path / "saved"):
        found = resolve(data)
        assert {split: len(encoded(s, tmp_path)) for split, s in found.items()} == {
            "train": 3,
            "dev": 1,
        }
    with pytest.raises(ConfigError, match=r"'train_sft' is none of train, dev, test, validation"):
        resolve(datasets.DatasetDict({"train_sft": dataset}))


def test_a_home_folder_is_written_as_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.jsonl").write_text(TEXT)
    (tmp_path / "present.json").write_text(json.dumps({"x": {"train": "~/a.jsonl"}}))
    for data in ("~/a.jsonl", {"train": "~/a.jsonl"}, ["~/a.jsonl"], "x"):
        assert resolve(data, "~/present.json")["train"].parts[0].path == tmp_path / "a.jsonl"
    assert row_word("~/a.jsonl") == "line" and len(list(read_rows("~/a.jsonl"))) == 3


def test_a_name_that_nobody_knows_says_that_the_hub_was_asked(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"'nobody/nothing' does not exist.*and the hub"):
        resolve("nobody/nothing", tmp_path / "present.json")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            [{"data": "a.jsonl", "wieght": 2}],
            r"data_path\[0\] has the unknown key 'wieght'.*'weight'",
        ),
        ([{"data": "a.jsonl", "weight": 0}], r"data_path\[0\]: weight=0 must be a number above 0"),
        ([{"data": [{"data": "a.jsonl", "weight": 2}]}], "is a mixture within a mixture"),
        (
            {"train": "a.jsonl", "dev": [{"data": "a.jsonl", "weight": 2}]},
            "'dev': weights are shares",
        ),
        (3, "data_path must be a path, rows or a data set; found 3"),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(
    data: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text(TEXT)
    with pytest.raises((ConfigError, DataError), match=message):
        resolve(data)


def test_the_splits_of_a_mixture_are_put_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "dev", "more"):
        Path(f"{name}.jsonl").write_text(TEXT)
    Path("present.json").write_text('{"a": {"train": "train.jsonl", "dev": "dev.jsonl"}}')
    entries = [{"data": "a", "weight": 3}, {"data": ROWS}, "more.jsonl"]
    found = resolve(entries, "present.json")
    assert found["train"].weights == ((1, 3.0), (1, 1.0), (1, 1.0))
    assert found["dev"].weights == () and len(found["dev"].parts) == 1
    assert found["train"].name == "train.jsonl, data_path[1], more.jsonl"


def test_batch_inference_asks_the_rows_of_all_of_these(tmp_path: Path) -> None:
    for name in ("rows.parquet", "rows.csv", "rows.jsonl.zst"):
        FILES[name](tmp_path / name)
    items = read_items([tmp_path / "rows.parquet", tmp_path / "rows.csv", ROWS])
    assert [item.idx for item in items] == list(range(9))
    assert [item.answer for item in items] == ["b", "答 é", "f"] * 3
    dataset = datasets.Dataset.from_list(ROWS)
    named = datasets.DatasetDict({"train": dataset, "test": dataset.select([1])})
    assert [item.query for item in read_items(named, "test")] == ["问"]
    with pytest.raises(ConfigError, match=r"split=None must be one of \['train', 'test'\]"):
        read_items(named)
    with pytest.raises(ConfigError, match="a weight is a share"):
        read_items([{"data": ROWS, "weight": 2}])
