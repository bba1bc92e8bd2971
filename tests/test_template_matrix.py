"""Every shape of row with every chat template: trained as it is asked, or refused with a proof."""

import runpy

import pytest
import template_matrix
from conftest import ROOT
from template_matrix import SHAPES, lacks, matrix, template_names

from main.dialogue.accounts import Dialogue
from main.dialogue.template import ChatTemplate

SLICE = [
    "qwen2_5",
    "qwen3",
    "qwen3_5_think",
    "llama3_1",
    "glm4moe",
    "gptoss",
    "deepseekv3",
    "gemma3",
]
PLAIN = ("plain", "system", "many turns", "Chinese", "emoji", "padded", "padded answer")
CALLS = ("call", "call last", "call, text")
# template -> shapes that have to be accepted; plain ones have to be with all.
ACCEPTED = {
    "qwen2_5": (*CALLS, "call, content", "two calls", "calls in turn"),
    "qwen3": (*CALLS, "call, content", "two calls", "thoughts", "thoughts in turns"),
    "qwen3_5_think": (*CALLS, "two calls", "thoughts", "thoughts in turns"),
    "llama3_1": CALLS,
    "glm4moe": (*CALLS, "two calls", "thoughts", "thoughts in turns"),
    "gptoss": CALLS,
    "deepseekv3": ("thoughts", "thoughts inline", "thoughts in turns"),
}


def hold(names: list[str]) -> int:
    """Check the cells of these templates; how many there are."""
    count = 0
    for name, cells in matrix(names):
        for shape, cell in cells.items():
            count += 1
            where = f"{name}, {shape}: {cell.reason}"
            assert cell.kind in ("=", "no"), where
            if cell.kind == "no":
                assert lacks(name, SHAPES[shape], cell.reason), where
            if shape in ACCEPTED.get(name, ()) or (shape in PLAIN and shape != "system"):
                assert cell.kind == "=", where
    return count


@pytest.mark.parametrize("name", SLICE)
def test_a_template_trains_what_is_asked_or_names_what_it_does_not_write(name: str) -> None:
    assert hold([name]) == len(SHAPES)


@pytest.mark.long
def test_all_templates_do() -> None:
    names = template_names()
    assert hold(names) == len(names) * len(SHAPES)


@pytest.mark.long
def test_the_page_in_the_docs_is_of_this_code() -> None:
    page = runpy.run_path(str(ROOT / "scripts" / "template_matrix.py"))["page"]()
    assert (ROOT / "docs" / "templates.md").read_text("utf-8") == page


def test_the_check_sees_what_is_wrong(monkeypatch) -> None:
    """A turn that is trained behind another prompt, and a string that is trained nowhere."""
    name = "qwen2_5"
    template = ChatTemplate(template_matrix.tokenizer_for(name))
    (found,) = template.try_encode_rows([Dialogue(SHAPES["many turns"])])
    monkeypatch.setattr(template, "try_encode_rows", lambda dialogues: [found])
    other = [*SHAPES["many turns"]]
    other[1] = {"role": "assistant", "content": "Nine miles."}
    assert template_matrix.cell(name, template, other).kind == "WRONG"
    other = [{"role": "user", "content": "How near?"}, *SHAPES["many turns"][1:]]
    assert template_matrix.cell(name, template, other).kind == "WRONG"
