"""Data sets and loaders by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from main.errors import ConfigError, DataError, MissingFileError
from main.loaders import LOADERS, Question, get_loader, register, resolve
from main.loaders.registry import find_format


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry in data/, its files beside it, the working directory above."""
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train.json", "dev.json"):
        (data / name).write_text("[]")
    monkeypatch.chdir(tmp_path)
    write(data / "present.json", {"law": {"train": "./data/train.json", "dev": "./dev.json"}})
    return data / "present.json"


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8-sig")


def paths(*arguments: Any) -> dict[str, Path | None]:
    """Split -> its one file."""
    found = resolve(*arguments)
    assert all(len(source.parts) == 1 for source in found.values())
    return {split: source.parts[0].path for split, source in found.items()}


def test_files_are_found_from_the_working_directory_then_from_the_registry(registry: Path) -> None:
    assert paths("law") == {"train": Path("data/train.json"), "dev": Path("data/dev.json")}
    (registry.parent.parent / "dev.json").write_text("[]")
    assert paths("law")["dev"] == Path("dev.json")


def test_a_mapping_and_a_file_need_no_registry(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("")
    missing = tmp_path / "none" / "present.json"
    assert paths({"train": file, "test": str(file)}, missing) == {"train": file, "test": file}
    assert paths(str(file), missing) == {"train": file}


def test_an_unknown_name_offers_the_nearest_and_lists_all(registry: Path) -> None:
    write(registry, {"law_dataset": {}, "qa_dataset": {}})
    with pytest.raises(ConfigError, match=r"'law_datset' is not in .*Did you mean 'law_dataset'\?"):
        resolve("law_datset")
    with pytest.raises(ConfigError, match=r"Known: law_dataset, qa_dataset\."):
        resolve("zzz")


def test_a_missing_registry_says_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"present\.json, which does not exist\. Write it"):
        resolve("law", tmp_path / "present.json")


def test_a_missing_file_names_both_places(registry: Path) -> None:
    write(registry, {"law": {"train": "gone.json"}})
    with pytest.raises(MissingFileError, match=r"'law', 'train': gone\.json .*neither .* nor from"):
        resolve("law")
    with pytest.raises(MissingFileError, match=r"data_path='data/gone\.json' does not exist"):
        resolve("data/gone.json")


def test_an_unknown_split_is_refused(registry: Path) -> None:
    write(registry, {"law": {"train": "train.json", "tets": "dev.json"}})
    with pytest.raises(ConfigError, match=r"unknown split 'tets'; allowed: .* Did you mean 'test'"):
        resolve("law")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must be an object such as"),
        ("{", r"present\.json line 1: not valid JSON: Expecting property name"),
        ('{"law": "train.json"}', "'law' must map splits to files"),
        ('{"law": {}}', "'law' must map splits to files"),
        ('{"law": {"train": 3}}', "'train' must be a path, rows or a data set; found 3"),
    ],
)
def test_a_broken_registry_is_explained(registry: Path, content: str, message: str) -> None:
    registry.write_text(content)
    with pytest.raises(DataError, match=message):
        resolve("law")


def test_the_guides_loader_names_are_known() -> None:
    guide = ("LLM_Chat", "ChatGLM_Chat", "ChatGLM_LoRA", "LLM_Pure", "LLM_DPO", "LLM_RLHF")
    assert set(LOADERS) == {*guide, "LLM_GRPO", "LLM_KTO"}
    assert get_loader("ChatGLM_LoRA") is get_loader("LLM_Pure")


def test_an_unknown_loader_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"'LLM_chat' is unknown\. Did you mean 'LLM_Chat'\?"):
        get_loader("LLM_chat")


@pytest.mark.parametrize(
    ("row", "loader"),
    [
        ({"conversations": []}, "LLM_Chat"),
        ({"conversations": [], "prompt": "p"}, "LLM_Chat"),
        ({"conversations": [], "gold_answers": "g"}, "LLM_DPO"),
        ({"conversations": [], "answer": "a", "label": True}, "LLM_KTO"),
        ({"conversations": [], "answer": "a"}, "LLM_Chat"),
        ({"prompt": "p", "completion": "c", "label": False}, "LLM_KTO"),
        ({"prompt": "p", "label": True}, "LLM_GRPO"),
        ({"prompt": "p", "context": "a column"}, "LLM_GRPO"),
        ({"context": "c"}, "LLM_Pure"),
    ],
)
def test_a_row_is_read_in_the_format_of_which_it_has_most_fields(row: dict, loader: str) -> None:
    found = find_format(row)
    assert found is not None and found.question is get_loader(loader).question


def test_no_format_reads_other_rows() -> None:
    assert find_format({"query": "q"}) is None


@pytest.mark.parametrize(("label", "gold"), [(True, "a"), (False, None)])
def test_a_bad_answer_of_an_unpaired_row_is_not_gold(label: bool, gold: str | None) -> None:
    question = get_loader("LLM_KTO").question({"prompt": "p", "completion": "a", "label": label})
    assert question == Question([{"role": "user", "content": "p"}], gold)


def test_a_taken_name_cannot_be_registered_again() -> None:
    register("LLM_Pure", get_loader("LLM_Pure"))
    with pytest.raises(ConfigError, match="loader_name='LLM_Chat' is taken"):
        register("LLM_Chat", get_loader("LLM_Pure"))
