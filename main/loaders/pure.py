"""Plain rows: {"context": ..., "target": ...}, no chat template; trained on the target and EOS.

Control tokens in these texts are read as such: the layout of a prompt is the author's own.
"""

from collections.abc import Iterator, Sequence

from main.dialogue.messages import WEIGHTS, weight_of
from main.dialogue.plain import PlainText
from main.dialogue.tokens import Encoded
from main.loaders.chat import TOKEN_COLUMNS, record
from main.loaders.fields import field_problems
from main.loaders.format import Format, Numbered, Question, Row, missing
from main.loaders.question import text_question
from main.loaders.report import Report


def validate(row: Row) -> list[str]:
    """Everything wrong with a context/target row."""
    problems = missing(row, ["context", "target"])
    for name in ("context", "target"):
        if name in row and not isinstance(row[name], str):
            problems.append(f"'{name}' must be a string; found {type(row[name]).__name__}.")
    if not problems and not row["target"].strip():
        problems.append("'target' is empty; there is nothing to learn: remove the row.")
    return problems + field_problems(row, WEIGHTS)


def encode(
    rows: Sequence[Numbered], template: PlainText, max_length: int | None, report: Report
) -> Iterator[Row]:
    """Ids and loss masks; see `Format.encode`. An over-long row loses the end of its target."""
    results = template.encode_batch([(row["context"], row["target"]) for _, row in rows])
    for (number, row), encoded in zip(rows, results, strict=True):
        if not weight_of(row):
            report.note(number, "weightless")
            continue
        if max_length is not None and len(encoded.input_ids) > max_length:
            ids, mask = encoded.input_ids[:max_length], encoded.loss_mask[:max_length]
            report.note(number, "cut" if any(mask) else "skipped")
            encoded = Encoded(ids, mask, [(encoded.turns[0][0], max_length)])
        if any(encoded.loss_mask):
            yield record(number, encoded._replace(weights=[weight_of(row)]))


def question(row: Row) -> Question | list[str]:
    """The context; the target is the answer."""
    return text_question(row["context"], "context", row.get("target"))


FORMAT = Format(
    "pure",
    2,
    TOKEN_COLUMNS,
    validate,
    encode,
    [("context",)],
    question,
    "plain",
    frozenset({"context", "target", *WEIGHTS}),
)
