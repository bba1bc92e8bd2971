"""Encoded rows as a model sees them, with the tokens that are trained in colour."""

import html
import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from main.errors import ConfigError, DataError
from main.loaders.cache import valid_rows
from main.loaders.reading import reading
from main.loaders.registry import get_loader
from main.loaders.report import Report
from main.loaders.shapes import AUTO

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COLOURS = {"trained": "\033[32m", "rejected": "\033[31m"}
_RESET = "\033[0m"
_MANY = re.compile(r"(<[^<>\n]{1,40}>)\1{3,}")
_MARKS = {"trained": ("⟦", "⟧"), "rejected": ("⟦-", "-⟧")}
_STYLE = """<style>
.preview{font:13px/1.5 ui-monospace,monospace;color-scheme:light dark;white-space:pre-wrap;
overflow-wrap:anywhere}
.preview .trained{background:light-dark(#c9f0d0,#14532d)}
.preview .rejected{background:light-dark(#f8d0d0,#6b1a1a)}
.preview .context{opacity:.75}
.preview b{display:block;margin-top:1em}
</style>"""


class Piece(NamedTuple):
    """Text of neighbouring tokens of one kind: 'context', 'trained', or 'rejected'.

    Of a GRPO or PPO row nothing is trained: it is context, gold and bad answers are beside it.
    """

    text: str
    kind: str
    tokens: int


class Sight(NamedTuple):
    """One row. row: its number; name: 'row 3', and of several sequences which one."""

    row: int
    name: str
    pieces: tuple[Piece, ...]


class Preview:
    """Rows to look at: `print` shows them, in colour on a terminal; notebooks show HTML."""

    def __init__(self, sights: Sequence[Sight]):
        self.sights = tuple(sights)

    def to_text(self, colour: bool = False) -> str:
        """Trained text in green and rejected text in red; without colour in ⟦ ⟧ and ⟦- -⟧."""
        return "\n\n".join(
            f"--- {_heading(s)}\n" + "".join(_shown(p, colour) for p in s.pieces)
            for s in self.sights
        )

    def to_html(self) -> str:
        """A fragment that stands by itself, in light and dark."""
        body = "".join(
            f"<b>{html.escape(_heading(sight))}</b>"
            + "".join(
                f'<span class="{p.kind}">{html.escape(_short(p.text))}</span>' for p in sight.pieces
            )
            for sight in self.sights
        )
        return f'{_STYLE}<div class="preview">{body}</div>'

    def __str__(self) -> str:
        return self.to_text(sys.stdout.isatty() and "NO_COLOR" not in os.environ)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html()


def preview(
    data_path: Any,
    loader_name: str = AUTO,
    *,
    from_pretrained: str | Path | None = None,
    tokenizer: Any = None,
    max_length: int = 1024,
    rows: int = 5,
    split: str = "train",
    data_present_path: str | Path = "./data/present.json",
    template_kwargs: Mapping[str, Any] | None = None,
) -> Preview:
    """The first rows that can be trained on, as a model with this tokenizer sees them.

    Only the first rows are read, and no model is loaded; a trainer's own are `Trainer.preview`.

    Args:
        rows: how many; split: of which.
        data_path, loader_name, from_pretrained, tokenizer, max_length, data_present_path,
            template_kwargs: see `main.loaders.check`.

    Raises:
        ConfigError: no tokenizer, or a split that is not there.
        DataError: none of the first rows can be used, and what is wrong with them.
        MissingFileError, ModelError: see `main.loaders.check`.
    """
    found = reading(
        data_path, loader_name, from_pretrained, tokenizer, data_present_path, template_kwargs
    )
    if found.template is None:
        raise ConfigError("a preview needs from_pretrained, a model's folder, or its tokenizer.")
    if split not in found.sources or rows < 1:
        raise ConfigError(
            f"rows={rows}, split={split!r}: rows must be 1 or more, and split one of "
            f"{list(found.sources)}."
        )
    form, report, sights = get_loader(found.loader), Report(), list[Sight]()
    part = found.sources[split].parts[0]
    for row in islice(valid_rows(part, form, report), rows):
        for encoded in form.encode([row], found.template, max_length, report):
            sights += sights_of(encoded, found.template.tokenizer)
    if not sights:
        report.raise_bad(part.name, part.word)
        raise DataError(f"{part.name}: nothing of the first {rows} rows is trained.")
    return Preview(sights)


def sights_of(row: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> list[Sight]:
    """An encoded row of any format: one sequence, or a prompt with each of its answers."""
    number = row["row"]
    if "input_ids" in row:
        kinds = ["trained" if trained else "context" for trained in row["loss_mask"]]
        weights = row.get("weights") or []
        kinds = ["context" if weights and not weights[i] else kind for i, kind in enumerate(kinds)]
        return [Sight(number, f"row {number}", _pieces(row["input_ids"], kinds, tokenizer))]
    prompt, found = row["prompt_ids"], []
    for name, kind, ids in _answers(row):
        kinds = ["context"] * len(prompt) + [kind] * len(ids)
        pieces = _pieces([*prompt, *ids], kinds, tokenizer)
        found.append(Sight(number, f"row {number}{name and f', {name}'}", pieces))
    return found


def _answers(row: Mapping[str, Any]) -> list[tuple[str, str, list[int]]]:
    """(name, kind, ids) of every answer of a prompt; of a prompt alone, no ids."""
    if "chosen_ids" in row:
        return [
            ("chosen", "trained", row["chosen_ids"]),
            ("rejected", "rejected", row["rejected_ids"]),
        ]
    if "answer_ids" in row:
        good = row["label"]
        name, kind = ("good", "trained") if good else ("bad", "rejected")
        return [(name, kind, row["answer_ids"])]
    if "gold_ids" in row:
        golds = [("gold", "trained", ids) for ids in row["gold_ids"]]
        return golds + [("bad", "rejected", ids) for ids in row["bad_ids"]]
    return [("", "context", [])]


def _pieces(
    ids: Sequence[int], kinds: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[Piece, ...]:
    """The text of ids, cut where the kind changes."""
    pieces, end, before = [], 0, ""
    for kind, run in groupby(kinds):
        tokens = len(list(run))
        end += tokens
        text = str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))
        # What a piece adds depends on what stands before it, as in SentencePiece's blanks.
        pieces.append(Piece(text.removeprefix(before), kind, tokens))
        before = text
    return tuple(pieces)


def _heading(sight: Sight) -> str:
    tokens = sum(piece.tokens for piece in sight.pieces)
    trained = sum(piece.tokens for piece in sight.pieces if piece.kind != "context")
    return f"{sight.name}: {tokens} tokens, {trained} trained"


def _short(text: str) -> str:
    """Of a control token that comes many times, as a picture's do, one and how many."""
    return _MANY.sub(lambda run: f"{run[1]} x {len(run[0]) // len(run[1])}", text)


def _shown(piece: Piece, colour: bool) -> str:
    text = _short(piece.text)
    if piece.kind == "context":
        return text
    if colour:  # a line at a time, so that pagers keep the colour
        lines = text.split("\n")
        return "\n".join(f"{_COLOURS[piece.kind]}{line}{_RESET}" for line in lines)
    before, after = _MARKS[piece.kind]
    return f"{before}{text}{after}"
