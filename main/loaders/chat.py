"""Chat rows: {"conversations": [{"role": ..., "content": ...}, ...]}, trained on every answer.

Beside it a row may have a `system` text, `tools`, `images` and `videos`, `chat_template_kwargs`,
and a weight; see main/loaders/fields.py.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from main.dialogue.drafts import Draft
from main.dialogue.messages import WEIGHTS
from main.dialogue.template import ChatTemplate
from main.dialogue.tokens import Encoded
from main.errors import DataError
from main.loaders.fields import DIALOGUE, VISUALS, dialogue_of, row_problems
from main.loaders.format import Format, Numbered, Question, Row, missing
from main.loaders.question import dialogue_question
from main.loaders.report import Report
from main.loaders.truncate import fit
from main.vision import media

TOKEN_COLUMNS: dict[str, Any] = {
    "input_ids": ["int32"],
    "loss_mask": ["bool"],
    "length": "int32",
    "row": "int64",
    "weights": ["float32"],  # of each token; [] where every trained one counts 1
}
# Where the images are and their sizes, as JSON; pixels are made when a batch is.
COLUMNS = TOKEN_COLUMNS | {"images": "string"}

READ = (*DIALOGUE, *VISUALS, *WEIGHTS)


def validate(row: Row) -> list[str]:
    """Everything wrong with a chat row."""
    problems = missing(row, ["conversations"])
    return problems or row_problems(row, "conversations", "assistant", READ)


def encode(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[Row]:
    """Ids and loss masks; see `Format.encode`."""
    dialogues = [dialogue_of(row, row["conversations"]) for _, row in rows]
    results = template.try_encode_rows(dialogues)
    for (number, _), result in zip(rows, results, strict=True):
        try:
            if isinstance(result, DataError):
                raise result
            yield from _records(number, result, template, max_length, report)
        except DataError as error:
            report.refuse(number, [f"'conversations': {error}"])


def _records(
    number: int,
    parts: Sequence[tuple[Draft, Encoded]],
    template: ChatTemplate,
    max_length: int | None,
    report: Report,
) -> Iterator[Row]:
    if not parts:
        report.note(number, "weightless")
    for draft, whole in parts:
        encoded, fate = fit(whole, draft.dialogue, template, max_length, draft.which)
        report.note(number, fate)
        if encoded is not None:
            images = media.dump([placed.visual for placed in encoded.images])
            yield record(number, encoded) | {"images": images}


def record(number: int, encoded: Encoded) -> Row:
    """The columns of one dialogue."""
    return {
        "input_ids": encoded.input_ids,
        "loss_mask": encoded.loss_mask,
        "length": len(encoded.input_ids),
        "row": number,
        "weights": encoded.token_weights,
    }


def question(row: Row) -> Question | list[str]:
    """The dialogue, up to its last answer."""
    return dialogue_question(row, "conversations", READ)


FORMAT = Format(
    "chat",
    6,
    COLUMNS,
    validate,
    encode,
    [("conversations",)],
    question,
    fields=frozenset({"conversations", *READ}),
)
