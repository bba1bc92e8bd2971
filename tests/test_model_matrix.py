"""Families of models: some here, all in `make test-long` (docs/models.md)."""

import runpy
from pathlib import Path

import model_matrix
import pytest

from main.models import probe

ROOT = Path(__file__).resolve().parent.parent
USUAL = ["Llama", "Qwen2", "Qwen3", "Qwen3Moe", "Gemma2", "Glm4", "GptOss", "DeepseekV3", "Mamba"]


@pytest.fixture(autouse=True)
def own_notes(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    probe.forget()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", USUAL)
def test_a_usual_family_is_trained_asked_and_merged_as_the_model_itself_says(name):
    found = model_matrix.family(f"{name}Config")
    assert not found.refusal and not found.wrong and found.merged == "=", found


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_family_that_looks_ahead_is_no_row_of_the_table():
    assert "no causal model" in model_matrix.family("BertConfig").refusal


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_family_is_right_or_refused_and_the_page_says_which():
    found = [model_matrix.family(name) for name in model_matrix.names()]
    assert [row for row in found if row.wrong] == []
    page = runpy.run_path(str(ROOT / "scripts" / "model_matrix.py"))["page"](found)
    assert page == (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
