"""Rows as the model sees them: the text of every token, and which of them are trained."""

import json
import re
from pathlib import Path
from typing import Any

import four_trainers
import pytest
from chat_templates import chat, turns

from main.errors import ConfigError, DataError
from main.loaders import preview
from main.loaders.preview import Piece, Preview, Sight, sights_of

TEMPLATE = chat("smollm2")
TOKENIZER = TEMPLATE.tokenizer
ROWS: list[dict[str, Any]] = [
    {"conversations": turns("问 <a>?", "答 🎉", "And\nthen?", "Then <b>\nthis.")},
    {"conversations": turns("x", "y")},
]


def text_of(shown: Preview) -> str:
    return "".join(piece.text for piece in shown.sights[0].pieces)


def test_the_pieces_are_the_whole_text_and_the_trained_ones_the_answers() -> None:
    shown = preview(ROWS, tokenizer=TOKENIZER, rows=1)
    encoded = TEMPLATE.encode(ROWS[0]["conversations"])
    assert text_of(shown) == TOKENIZER.decode(encoded.input_ids)
    trained = [piece.text for piece in shown.sights[0].pieces if piece.kind == "trained"]
    assert trained == ["答 🎉<|im_end|>", "Then <b>\nthis.<|im_end|>"]
    assert sum(p.tokens for p in shown.sights[0].pieces) == len(encoded.input_ids)
    assert f"row 1: {len(encoded.input_ids)} tokens, {sum(encoded.loss_mask)} trained" in str(shown)


def test_colour_marks_and_html_say_the_same() -> None:
    shown = preview(ROWS, tokenizer=TOKENIZER, rows=1)
    plain, coloured, page = shown.to_text(), shown.to_text(colour=True), shown.to_html()
    assert "⟦答 🎉<|im_end|>⟧" in plain and "\033" not in plain == str(shown)
    assert "\033[32mThen <b>\033[0m\n\033[32mthis.<|im_end|>\033[0m" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == plain.replace("⟦", "").replace("⟧", "")
    assert '<span class="trained">答 🎉&lt;|im_end|&gt;</span>' in page
    assert "<a>" not in page and shown._repr_html_() == page


def test_the_many_tokens_of_a_picture_are_shown_as_one() -> None:
    pieces = (Piece("<|vision_start|>" + "<|image_pad|>" * 256 + "<|vision_end|>", "context", 258),)
    shown = Preview([Sight(1, "row 1", pieces)])
    assert shown.to_text().endswith("\n<|vision_start|><|image_pad|> x 256<|vision_end|>")
    assert "&lt;|image_pad|&gt; x 256" in shown.to_html()


def test_turns_without_weight_are_context() -> None:
    row = {"conversations": turns("a", "b", "c", "d")}
    row["conversations"][1]["weight"] = 0
    pieces = preview([row], tokenizer=TOKENIZER).sights[0].pieces
    assert [piece.text for piece in pieces if piece.kind == "trained"] == ["d<|im_end|>"]


@pytest.mark.parametrize(
    ("row", "kinds"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, ["context trained", "context rejected"]),
        ({"prompt": "q", "completion": "a", "label": False}, ["context rejected"]),
        ({"prompt": [{"role": "user", "content": "q"}], "answer": "a"}, ["context"]),
        ({"context": "c", "target": "t"}, ["context trained"]),
    ],
)
def test_every_format_is_shown(row: dict[str, Any], kinds: list[str]) -> None:
    shown = preview([row], tokenizer=TOKENIZER)
    assert [" ".join(p.kind for p in sight.pieces) for sight in shown.sights] == kinds


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs from_pretrained"):
        preview(ROWS)
    with pytest.raises(ConfigError, match=r"split='dev'.*one of \['train'\]"):
        preview(ROWS, tokenizer=TOKENIZER, split="dev")
    with pytest.raises(DataError, match=r"row 1: conversations\[1\] is an empty assistant turn"):
        preview([{"conversations": turns("a", "")}], tokenizer=TOKENIZER)


@pytest.mark.parametrize("method", four_trainers.METHODS)
def test_every_trainer_shows_its_own_rows(
    method: str, tiny_model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    four_trainers.write_data(tmp_path)
    trainer = four_trainers.make_trainer(method, tiny_model_path)
    shown = trainer.preview(2)
    assert {sight.row for sight in shown.sights} == {1, 2}
    assert shown.sights[0] == sights_of(trainer.train_data[0], trainer.tokenizer)[0]
    assert "1. The colour of the sky?" in str(shown)
    assert "".join(json.dumps(s.name) for s in trainer.preview(1, "eval").sights)
    with pytest.raises(ConfigError, match=r"preview\(rows=0"):
        trainer.preview(0)
