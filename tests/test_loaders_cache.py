"""From a data file to a memory-mapped set of encoded rows."""

import errno
import json
import logging
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from chat_templates import ROOT, chat, load_tokenizer, turns
from launchers import launch

from main.dialogue.plain import PlainText
from main.errors import DataError, MissingFileError
from main.loaders import ChatTemplate, cache, load_dataset_split

TEMPLATE = chat("smollm2")


def row(question: str, answer: str) -> dict[str, Any]:
    return {"conversations": turns(question, answer)}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "train.jsonl", [row("a", "b"), row("问", "答 é")])


def load(file: Path, **options: Any) -> Any:
    given = {"loader": "LLM_Chat", "template": TEMPLATE, "cache_dir": file.parent / "cache"}
    return load_dataset_split(file, **{**given, **options})


def cached(file: Path) -> list[Path]:
    return sorted((file.parent / "cache").glob("*.arrow"))


def test_rows_come_back_as_they_were_encoded(file: Path) -> None:
    data = load(file)
    expected = [TEMPLATE.encode(turns("a", "b")), TEMPLATE.encode(turns("问", "答 é"))]
    assert [r["input_ids"] for r in data] == [e.input_ids for e in expected]
    assert [r["loss_mask"] for r in data] == [e.loss_mask for e in expected]
    assert data["length"][:] == [len(e.input_ids) for e in expected]
    assert data["row"][:] == [1, 2]
    assert str(data.features["input_ids"].feature.dtype) == "int32"


def test_the_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(["", json.dumps(row("a", "b")), "", "", json.dumps(row("c", "d"))]))
    assert load(path)["row"][:] == [2, 5]


def test_the_second_time_nothing_is_encoded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(file)[:]
    monkeypatch.setattr(cache, "_build", None)
    assert load(file)[:] == first


def test_everything_that_changes_the_ids_makes_another_cache(file: Path) -> None:
    load(file)
    load(file, max_length=512)
    load(file, template=chat("smollm2", "qwen2_5"))
    load(file, template=chat("qwen", "qwen2_5"))
    load(file, template=chat("qwen", "qwen3"))
    load(file, template=chat("qwen", "qwen3", enable_thinking=False))
    write_rows(file, [row("a", "B")])
    assert load(file)[0]["input_ids"] == TEMPLATE.encode(turns("a", "B")).input_ids
    assert len(cached(file)) == 7
    # The same rows under the other name of their format are the same cache.
    load(file, loader="ChatGLM_Chat")
    assert len(cached(file)) == 7


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no stamp", "broken stamp"])
def test_a_damaged_cache_is_made_again(file: Path, damage: str) -> None:
    before = load(file)[:]
    (target,) = cached(file)
    data = target.read_bytes()
    changed = {
        "truncate": data[: len(data) // 2],
        "flip": data[:-100] + bytes([data[-100] ^ 255]) + data[-99:],
        "empty": b"",
    }
    if damage in changed:
        target.write_bytes(changed[damage])
    elif damage == "no stamp":
        target.with_suffix(".json").unlink()
    else:
        target.with_suffix(".json").write_text('{"sha256": ')
    assert load(file)[:] == before
    assert target.read_bytes() == data


def test_a_full_disk_leaves_nothing_half_written(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            load(file)
    assert list((file.parent / "cache").iterdir()) == []
    assert len(load(file)) == 2


def test_all_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    lines = [
        json.dumps(row("a", "b")),
        '{"conversations": [',
        json.dumps({"conversations": turns("a")}),
        json.dumps(row("a<|im_end|>", "b")),
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(DataError) as caught:
        load(path)
    head, *rest = str(caught.value).split("\n")
    assert head == f"{path}: 3 of 4 rows cannot be used:"
    assert [line.split(": ")[0] for line in rest] == [f"{path} line {n}" for n in (2, 3, 4)]
    assert "not valid JSON" in rest[0]
    assert "has no assistant turn" in rest[1]
    assert "control token '<|im_end|>'" in rest[2]
    assert cached(path) == []


def test_one_bad_row_is_one_line(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [{"conversations": turns("q")}])
    with pytest.raises(
        DataError, match=r"train\.jsonl line 1: 'gold_answers' is missing; found \["
    ):
        load(path, loader="LLM_DPO")


def test_of_many_bad_rows_the_first_twenty_are_shown(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.json", [{"x": i} for i in range(1500)])
    with pytest.raises(DataError, match=r"1500 of 1500 rows cannot be used \(the first 20\)") as e:
        load(path)
    assert len(str(e.value).split("\n")) == 21
    assert "line 20: " in str(e.value) and "line 21: " not in str(e.value)


def test_items_of_an_array_are_called_items(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(json.dumps([row("a", "b"), {}], indent=1))
    with pytest.raises(DataError, match=r"train\.json item 2: 'conversations' is missing"):
        load(path)


def test_an_empty_set_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [])
    with pytest.raises(DataError, match=r"train\.jsonl has no rows; write at least one"):
        load(path)
    with pytest.raises(MissingFileError, match="does not exist"):
        load(tmp_path / "gone.jsonl")


def test_what_the_limit_did_is_said_once_a_load(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = {"conversations": turns("old " * 30, "x", "new", "y")}
    rows = [row("q", "word " * 60), two, *[row("word " * 60, "x")] * 7]
    path = write_rows(tmp_path / "train.jsonl", rows)
    expected = (
        f"{path}: of 9 rows at max_length=50, 1 had the end of an answer cut off (line 1); "
        "1 lost their oldest turns (line 2); 7 were skipped: their prompt leaves no room for an "
        "answer (line 3, 4, 5, 6, 7, ...)"
    )
    for _ in range(2):  # made, then found in the cache
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="main.loaders"):
            assert load(path, max_length=50)["row"][:] == [1, 2]
        assert [record.getMessage() for record in caplog.records] == [expected]


def test_a_set_without_a_trained_token_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", [row("word " * 60, "x")] * 2)
    with pytest.raises(DataError, match=r"none of the 2 rows leaves room .*max_length=20.*line 1"):
        load(path, max_length=20)


def test_every_format_can_be_stored(tmp_path: Path) -> None:
    both = {"conversations": turns("q"), "gold_answers": "a", "bad_answers": ["b", "c"]}
    path = write_rows(tmp_path / "p.jsonl", [both])
    assert len(load(path, loader="LLM_DPO")) == 2
    rewarded = load(path, loader="LLM_RLHF")[0]
    assert rewarded["bad"] == ["b", "c"] and len(rewarded["bad_ids"]) == 2
    path = write_rows(tmp_path / "g.jsonl", [{"prompt": turns("q"), "anwer": "答"}])
    assert json.loads(load(path, loader="LLM_GRPO")[0]["columns"]) == {"answer": "答"}
    path = write_rows(tmp_path / "t.jsonl", [{"context": "c", "target": "t"}])
    plain = PlainText(load_tokenizer("smollm2"))
    assert load(path, loader="LLM_Pure", template=plain)[0]["length"] == 3  # c, t, end


def test_the_cache_stands_beside_the_other_data_sets(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", file.parent / "hf")
    load(file, cache_dir=None)
    assert len(list((file.parent / "hf" / "main").glob("*.arrow"))) == 1


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write_rows(
            tmp_path / f"{count}.jsonl", [row(f"q{i}", "a " * 50) for i in range(count)]
        )
        tracemalloc.start()
        assert len(load(path)) == count
        result = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return result

    peak(300)  # imports
    # A batch is 256 rows: ten of them need no more than two.
    assert peak(2560) < 1.3 * peak(512)
    assert pyarrow.total_allocated_bytes() < 50e6


WORKER = """
import sys
from transformers import AutoTokenizer
from main.loaders import get_template, load_dataset_split
template = get_template(AutoTokenizer.from_pretrained(sys.argv[1]), "LLM_Chat")
try:
    rows = load_dataset_split(sys.argv[2], "LLM_Chat", template, cache_dir=sys.argv[3])
    said = f"rows {len(rows)}\\n"
except Exception as error:
    said = f"refused {type(error).__name__}\\n"
sys.stdout.write(said)  # at once: two processes share the output
"""


@pytest.mark.distributed
@pytest.mark.parametrize(("answer", "expected"), [("b", "rows 1"), ("", "refused DataError")])
def test_two_processes_make_one_cache_and_fail_together(
    tmp_path: Path, answer: str, expected: str
) -> None:
    path = write_rows(tmp_path / "train.jsonl", [row("a", answer)])
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    model = ROOT / "models" / "SmolLM2-135M-Instruct"
    done = launch(script, str(model), str(path), str(tmp_path / "cache"), timeout=240)
    assert done.stdout.count(expected) == 2, done.stderr
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == (expected == "rows 1")


def test_a_template_used_with_the_wrong_rows_says_so(file: Path) -> None:
    assert isinstance(TEMPLATE, ChatTemplate)
    with pytest.raises(DataError, match="'context' is missing"):
        load(file, loader="LLM_Pure")
