"""What every row format offers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from main.loaders.report import Report
from main.options import nearest

Row = dict[str, Any]
Numbered = tuple[int, Row]
# (row number, what is wrong with it) -> None
OnBad = Callable[[int, str], None]


class Question(NamedTuple):
    """What a row asks a model.

    prompt: messages up to the turn that is to be answered, or plain text.
    gold: the answer or answers that the row gives; None where it gives none.
    tools, variables: of the row, as JSON schemas and as variables of the chat template.
    """

    prompt: str | list[Any]
    gold: Any = None
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] | None = None


class Format(NamedTuple):
    """One row format: how it is trained on, and what it asks.

    name: for messages and for the cache.
    version: raised when the same rows would become other ids.
    columns: column -> type name, or [type name] for a list, of the encoded rows.
    validate: (row) -> everything wrong with it, as sentences.
    encode: (numbered rows, template, max_length, report) -> encoded rows, one dict each. Rows that
        the template cannot render are refused in the report.
    marks: sets of fields; a row that has all fields of one of them is read in this format where
        nobody names the format, as in batch inference. The largest set that a row has decides.
    question: (row) -> what it asks, or everything that keeps it from being asked, as sentences.
        Only what is asked has to be sound: such a row needs no answer.
    fields: all that the format reads of a row; None = whatever a row has is used, as in rows whose
        further columns belong to reward functions.
    template: what renders the rows: the chat template, nothing ("plain", `PlainText`), or
        "either": nothing where the tokenizer has no chat template.
    """

    name: str
    version: int
    columns: dict[str, Any]
    validate: Callable[[Row], list[str]]
    encode: Callable[[Sequence[Numbered], Any, int | None, Report], Iterator[Row]]
    marks: Sequence[tuple[str, ...]]
    question: Callable[[Row], Question | list[str]]
    template: Literal["chat", "plain", "either"] = "chat"
    fields: frozenset[str] | None = None

    def unread(self, row: Row) -> list[str]:
        """The row's fields that nothing reads."""
        return [] if self.fields is None else [name for name in row if name not in self.fields]


def missing(row: Row, fields: Sequence[str]) -> list[str]:
    """One sentence for every field that the row does not have."""
    return [
        f"'{name}' is missing; found {sorted(row)}."
        + "".join(nearest(name, [k for k in row if k not in fields]))
        for name in fields
        if name not in row
    ]
