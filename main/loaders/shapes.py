"""Rows as other libraries have them -> rows of our formats: what `loader_name="auto"` recognises.

A shape is told by the fields of a row. What it does not name stays in the row as it is, so that a
system text, tools, pictures and weights mean what they mean in our own rows.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from main.loaders import foreign
from main.loaders.format import Row

AUTO = "auto"


class Shape(NamedTuple):
    """One kind of rows.

    name: for messages.
    fields: those by which it is known.
    loaders: our formats that read what it becomes, the usual one first.
    as_own: (row) -> row of the first of them; raises DataError.
    fits: whether a row with these fields is one; by default it is.
    words: our names in the sentences about a row -> those of the row.
    """

    name: str
    fields: tuple[str, ...]
    loaders: tuple[str, ...]
    as_own: Callable[[Row], Row]
    fits: Callable[[Row], bool] = lambda row: True
    words: Mapping[str, str] = {}

    @property
    def is_own(self) -> bool:
        """Whether it is one of our formats already."""
        return self.as_own is _same

    @property
    def key(self) -> str:
        """What tells rows read so from the same rows read otherwise, in the cache."""
        return f"{self.name} {foreign.VERSION}"

    def read(self, row: Row, loader: str) -> Row:
        """The row for a loader out of `loaders`.

        Raises:
            DataError: it cannot be read so.
        """
        own = self.as_own(row)
        return foreign.asked(own) if loader == "LLM_GRPO" and loader != self.loaders[0] else own

    def told(self, problem: str) -> str:
        """A sentence about our row, with the names of the row as it stands in the file."""
        for ours, theirs in self.words.items():
            problem = problem.replace(ours, theirs)
        return problem


def shape_of(row: Mapping[str, Any]) -> Shape | None:
    """The shape of a row; None of one that has none."""
    return next((s for s in SHAPES if all(f in row for f in s.fields) and s.fits(dict(row))), None)


def asking_shape(row: Mapping[str, Any]) -> Shape | None:
    """The shape of a row of other libraries that is asked, and needs no answer; None of ours."""
    found = shape_of(row)
    if found is None and "instruction" in row:
        found = ALPACA
    return None if found is None or found.is_own or "query" in row else found


def described(row: Mapping[str, Any]) -> str:
    """For a message about a row of no, or of another, shape."""
    found = shape_of(row)
    return f"a row of {found.name}" if found else f"a row with the fields {sorted(map(str, row))}"


def _same(row: Row) -> Row:
    return row


_PAIRS = ("LLM_DPO", "LLM_RLHF")
_DIALOGUE = ("LLM_Chat", "LLM_GRPO")

ALPACA = Shape("Alpaca (instruction, output)", ("instruction", "output"), _DIALOGUE, foreign.alpaca)
# A row is of the first that it fits.
SHAPES = (
    Shape("KTO (prompt, completion)", ("prompt", "completion", "label"), ("LLM_KTO",), _same),
    Shape("LLM_KTO", ("conversations", "answer", "label"), ("LLM_KTO",), _same),
    Shape("LLM_DPO", ("conversations", "gold_answers", "bad_answers"), _PAIRS, _same),
    Shape(
        "ShareGPT preferences (conversations, chosen, rejected)",
        ("conversations", "chosen", "rejected"),
        _PAIRS,
        foreign.sharegpt_pair,
        words={"'gold_answers'": "'chosen'", "'bad_answers'": "'rejected'"},
    ),
    Shape(
        "Alpaca preferences (instruction, chosen, rejected)",
        ("instruction", "chosen", "rejected"),
        _PAIRS,
        foreign.alpaca_pair,
        words={"'gold_answers'": "'chosen'", "'bad_answers'": "'rejected'"},
    ),
    Shape(
        "preferences (prompt, chosen, rejected)",
        ("chosen", "rejected"),
        _PAIRS,
        foreign.pair,
        words={
            **{"'gold_answers'": "'chosen'", "'bad_answers'": "'rejected'"},
            "conversations": "prompt",
        },
    ),
    Shape(
        "ShareGPT (from, value)",
        ("conversations",),
        _DIALOGUE,
        foreign.sharegpt,
        foreign.is_sharegpt,
        {"'role'": "'from'", "'content'": "'value'"},
    ),
    Shape(
        "OpenAI messages",
        ("messages",),
        _DIALOGUE,
        foreign.openai,
        words={"conversations": "messages"},
    ),
    Shape("LLM_Chat", ("conversations",), _DIALOGUE, _same),
    Shape(
        "prompt and completion",
        ("prompt", "completion"),
        _DIALOGUE,
        foreign.completed,
        words={"'conversations'": "'prompt' and 'completion'"},
    ),
    ALPACA,
    Shape("LLM_Pure (context, target)", ("context", "target"), ("LLM_Pure",), _same),
    Shape("LLM_GRPO (prompt)", ("prompt",), ("LLM_GRPO",), _same),
)
