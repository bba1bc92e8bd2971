"""Chat rows: {"conversations": [{"role": ..., "content": ...}, ...]}, trained on every answer."""

from collections.abc import Iterator, Sequence
from typing import Any

from main.errors import DataError
from main.loaders.format import Format, Numbered, Row, missing
from main.loaders.messages import dialogue_problems
from main.loaders.report import Report
from main.loaders.template import ChatTemplate
from main.loaders.tokens import Encoded
from main.loaders.truncate import fit
from main.vision import media

TOKEN_COLUMNS: dict[str, Any] = {
    "input_ids": ["int32"],
    "loss_mask": ["bool"],
    "length": "int32",
    "row": "int64",
}
# Where the images are and their sizes, as JSON; pixels are made when a batch is.
COLUMNS = TOKEN_COLUMNS | {"images": "string"}


def validate(row: Row) -> list[str]:
    """Everything wrong with a chat row."""
    problems = missing(row, ["conversations"])
    if row.get("tools"):
        problems.append("'tools' cannot be rendered yet; describe the tools in the system turn.")
    return problems or dialogue_problems(row["conversations"], "conversations", "assistant")


def encode(
    rows: Sequence[Numbered], template: ChatTemplate, max_length: int | None, report: Report
) -> Iterator[Row]:
    """Ids and loss masks; see `Format.encode`."""
    results = template.try_encode_batch([row["conversations"] for _, row in rows])
    for (number, row), result in zip(rows, results, strict=True):
        try:
            if isinstance(result, DataError):
                raise result
            encoded, fate = fit(result, row["conversations"], template, max_length)
        except DataError as error:
            report.refuse(number, [f"'conversations': {error}"])
            continue
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
    }


FORMAT = Format("chat", 2, COLUMNS, validate, encode)
