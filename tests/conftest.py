"""Fixtures shared by all tests: where the fetched assets lie, and a tiny model to train on."""

import importlib.util
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
TAKE_LONG = ("slow", "distributed", "vllm", "long")


def asset(folder: str) -> Path:
    """The fetched folder `models/<folder>`; the test fails, and says why, when it is missing."""
    path = MODELS / folder
    if not path.is_dir():
        pytest.fail(
            f"{path.relative_to(ROOT)} is missing. `make test` fetches it first; "
            "by hand: python scripts/fetch_assets.py",
            pytrace=False,
        )
    return path


def script(name: str) -> ModuleType:
    """The file `scripts/<name>.py` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def small_model_path() -> Path:
    """SmolLM2-135M-Instruct, float32: a real model that follows instructions."""
    return asset("SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def qwen_tokenizer_path() -> Path:
    """The Qwen vocabulary (BOS-less, pad != eos), without a chat template."""
    return asset("tokenizers/qwen")


@pytest.fixture(scope="session")
def llama3_tokenizer_path() -> Path:
    """The Llama 3 vocabulary (adds BOS, has no pad token), without a chat template."""
    return asset("tokenizers/llama3")


@pytest.fixture(scope="session")
def encoder_path() -> Path:
    """all-MiniLM-L6-v2: a real sentence encoder, 384 numbers a sentence."""
    return asset("all-MiniLM-L6-v2")


@pytest.fixture(scope="session")
def tiny_model_path(small_model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Llama: 2 layers, hidden 64, SmolLM2's vocabulary, tokenizer and template."""
    from tiny_llama import save_tiny_llama

    return save_tiny_llama(small_model_path, tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and a cache for data sets, that no other test has."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


@pytest.hookimpl(tryfirst=True)  # before the tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with many long tests first: one begun last would keep the other workers waiting.

    Tests marked `vllm` are long ones; they run where it is installed.
    """
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(pytest.mark.long)
    long = Counter(i.path for i in items for mark in TAKE_LONG if i.get_closest_marker(mark))
    items.sort(key=lambda item: -long[item.path])
    if importlib.util.find_spec("vllm"):
        return
    skip = pytest.mark.skip(reason="vllm is not installed: make install-vllm")
    for item in items:
        if item.get_closest_marker("vllm"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def vision_models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random checkpoints of the vision-language families, see `vision_checkpoints.Checkpoints`."""
    from vision_checkpoints import Checkpoints

    return Checkpoints(tmp_path_factory.mktemp("vision"))
