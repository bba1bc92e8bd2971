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
    assert "line 2: 'text' must be a text; found ['clue']" in str(caught.value)
    with pytest.raises(MissingFileError, match="does not exist"):
        rag.read_entries(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no entry"):
        rag.read_entries(tmp_path / "empty")


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
