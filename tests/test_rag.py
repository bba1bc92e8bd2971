"""The RAG example on real chromadb and a real sentence encoder."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT

from main.errors import ConfigError, DataError, MissingFileError

sys.path.insert(0, str(ROOT / "examples" / "rag"))

POLICIES = ROOT / "examples" / "rag" / "policies.jsonl"
QUESTION = "Until when can I return things?"


@pytest.fixture(scope="module")
def rag():
    pytest.importorskip("chromadb", reason="the rag extra is optional")
    import index

    return index


@pytest.fixture(scope="module")
def filled(rag, encoder_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    index = rag.Index(folder, encoder_path)
    assert index.find(QUESTION) is None  # an empty index
    assert index.add(rag.read_entries(POLICIES)) == (6, 0, 0)
    return folder


def test_the_nearest_clue_is_found_only_within_the_threshold(rag, filled, encoder_path):
    index = rag.Index(filled, encoder_path)  # opened again: it lies on disk
    hit = index.find(QUESTION, threshold=0.4)
    assert hit.id == "returns-1" and "45 days" in hit.clue and 0 < hit.distance < 0.4
    assert index.find(QUESTION, threshold=hit.distance) is None
    assert index.find("Until when may I return an item?").distance == pytest.approx(0, abs=1e-5)
    assert index.find("What is the capital of France?") is None


def test_adding_again_replaces_what_changed_and_doubles_nothing(rag, encoder_path, tmp_path):
    index = rag.Index(tmp_path, encoder_path)
    first = [rag.Entry("a", "one", "1"), rag.Entry("b", "two", "2")]
    assert index.add(first) == (2, 0, 0)
    assert index.add([*first, rag.Entry("b", "two", "zwei"), rag.Entry("c", "3", "3")]) == (1, 1, 1)
    assert [tuple(entry) for entry in index.entries()] == [
        ("a", "one", "1"),
        ("b", "two", "zwei"),
        ("c", "3", "3"),
    ]
    index.delete(["a", "c"])
    assert len(index) == 1
    with pytest.raises(ConfigError, match=r"not in the index: \['a'\]"):
        index.delete(["b", "a"])
    assert len(index) == 1


def test_an_index_of_another_encoder_is_refused(rag, filled, encoder_path, tmp_path):
    other = tmp_path / "encoder"
    other.mkdir()
    for file in encoder_path.rglob("*"):
        target = other / file.relative_to(encoder_path)
        if file.is_dir():
            target.mkdir(exist_ok=True)
        else:
            target.symlink_to(file.resolve())
    (other / "tokenizer.json").unlink()
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match="built with another encoder"):
        rag.Index(filled, other)
    with pytest.raises(MissingFileError, match="holds no sentence encoder"):
        rag.Index(filled, tmp_path / "nothing")


def test_paragraphs_of_a_folder_are_entries(rag, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.txt").write_text("第一段。\n\n第二段。\n\n", encoding="utf-8")
    (tmp_path / "deep" / "b.md").write_text("only one", encoding="utf-8")
    (tmp_path / "c.pdf").write_text("not read")
    assert [tuple(entry) for entry in rag.read_entries(tmp_path)] == [
        ("a.txt#1", "第一段。", "第一段。"),
        ("a.txt#2", "第二段。", "第二段。"),
        ("deep/b.md#1", "only one", "only one"),
    ]


def test_bad_knowledge_is_named(rag, tmp_path):
    path = Path(tmp_path / "bad.jsonl")
    path.write_text('{"text": "fine"}\n{"clue": "x"}\n{"text": ["x"]}\n{broken\n')
    with pytest.raises(DataError, match="3 rows cannot be used") as caught:
        rag.read_entries(path)
    assert "line 2: 'text' must be a text that is not empty; found ['clue']" in str(caught.value)
    with pytest.raises(MissingFileError, match="does not exist"):
        rag.read_entries(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no entry"):
        rag.read_entries(tmp_path / "empty")


def test_ids_and_clues_are_texts_and_files_are_utf8(rag, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a", "id": ""}\n{"text": "a", "clue": true}\n{"text": 3, "id": 7}\n')
    with pytest.raises(DataError, match="2 rows cannot be used") as caught:
        rag.read_entries(path)
    assert "line 1: 'id' must be" in str(caught.value) and "line 2: 'clue'" in str(caught.value)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "old.txt").write_bytes("第一段".encode("gbk"))
    with pytest.raises(DataError, match=r"old\.txt is not UTF-8"):
        rag.read_entries(tmp_path / "texts")


FACTS = ["The lighthouse keeper is called Olga.", "The museum closes at nine in the evening."]
QUESTIONS = ["Who keeps the lighthouse?", "When does the museum close?"]
FILLER = "Nothing of interest happened in the town on that day, and it rained a little. "


def test_no_part_of_a_long_text_is_left_out(rag, encoder_path, tmp_path):
    index = rag.Index(tmp_path, encoder_path)
    text = FACTS[0] + " " + FILLER * 40 + FACTS[1]
    assert index.add([rag.Entry("town", text, text), rag.Entry("b", "Cats sleep.", "x")]) == (
        2,
        0,
        0,
    )
    assert (len(index), [entry.id for entry in index.entries()]) == (2, ["b", "town"])
    for fact, question in zip(FACTS, QUESTIONS, strict=True):
        hit = index.find(question, threshold=0.9)
        assert hit.id == "town" and fact in hit.clue and len(hit.clue) < len(text) / 2
    assert index.add([rag.Entry("town", text, text)]) == (0, 0, 1)
    assert index.add([rag.Entry("town", FACTS[0], FACTS[0])]) == (0, 1, 0)
    assert index._collection.count() == 2  # nothing of the longer text is left
    index.delete(["town"])
    assert index._collection.count() == 1


def test_pieces_hold_the_whole_text_and_the_encoder_reads_each(rag, encoder_path):
    from pieces import pieces, spans
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(encoder_path))
    days = "".join(f"On day {day} it rained over town number {day * 7}. " for day in range(200))
    chinese = "".join(f"第{day}天，镇上下雨。" for day in range(300))
    for text in (days, chinese, days.replace(" ", "")):
        parts = pieces(text, encoder)
        assert len(parts) > 2
        end = 0
        for part in parts:
            start = text.index(part, max(0, end - len(part)))
            assert not text[end:start].strip()  # nothing between two pieces
            end = start + len(part)
            assert len(encoder.tokenizer(part)["input_ids"]) <= int(encoder.max_seq_length or 0)
        assert not text[end:].strip()
    assert pieces("short", encoder) == ["short"]
    assert spans([0, 0, 0, 0, 0], 2) == [(0, 2), (2, 4), (4, 5)]  # a word longer than a piece


def constant(texts):
    import numpy as np

    return np.random.default_rng(len(texts)).normal(size=(len(texts), 384)).astype(np.float32)


def test_entries_go_in_by_as_many_as_the_database_takes(rag, encoder_path, tmp_path, monkeypatch):
    index, sizes = rag.Index(tmp_path, encoder_path), []
    monkeypatch.setattr(index._client, "get_max_batch_size", lambda: 4)
    monkeypatch.setattr(index, "_embed", lambda texts: sizes.append(len(texts)) or constant(texts))
    entries = [rag.Entry(str(i), f"text {i}", "x") for i in range(11)]
    assert index.add(entries) == (11, 0, 0)
    assert sizes == [4, 4, 3]
    assert index.add(entries) == (0, 0, 11)
    index.delete([entry.id for entry in entries])
    assert len(index) == 0


@pytest.mark.slow
def test_more_entries_than_the_database_takes_at_once(rag, encoder_path, tmp_path, monkeypatch):
    index = rag.Index(tmp_path, encoder_path)
    most = index._client.get_max_batch_size()
    monkeypatch.setattr(index, "_embed", constant)
    assert index.add([rag.Entry(str(i), f"t{i}", "x") for i in range(most + 1)])[0] == most + 1
    assert len(index) == most + 1


def test_an_index_that_cannot_be_used_is_named(rag, encoder_path, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    for folder in ("file", "damaged"):
        with pytest.raises(ConfigError, match=rf"the index in .*{folder} cannot be used"):
            rag.Index(tmp_path / folder, encoder_path)


@pytest.mark.slow
def test_the_example_answers_with_the_clue_and_says_which(
    rag, filled, small_model_path, encoder_path, capsys, monkeypatch
):
    import ask

    arguments = ["--model", str(small_model_path), "--encoder", str(encoder_path)]
    monkeypatch.setattr(sys, "argv", ["ask", QUESTION, "--index", str(filled), *arguments])
    ask.main()
    printed = capsys.readouterr().out
    assert "Clue: returns-1" in printed
    assert "45" in printed.partition("With the clue:")[2].partition("Without a clue:")[0]
    assert "45" not in printed.partition("Without a clue:")[2]
