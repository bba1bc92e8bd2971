"""Whether rows fit the model: no token beyond its embedding, no row beyond its context."""

import logging
from collections.abc import Mapping
from typing import Any

from main.models import context_length

log = logging.getLogger(__name__)

# Columns of encoded rows that hold token ids, of all formats.
ID_COLUMNS = (
    "input_ids",
    "prompt_ids",
    "chosen_ids",
    "rejected_ids",
    "answer_ids",
    "gold_ids",
    "bad_ids",
)


def row_limit(max_length: int, config: Any) -> int:
    """`max_length`, or the model's context where that is less, which is told."""
    context = context_length(config)
    if context is None or max_length <= context:
        return max_length
    log.warning(
        "max_length=%d is more than the model's context of %d tokens: rows are shortened to that.",
        max_length,
        context,
    )
    return context


def vocabulary_problems(tokenizer: Any, embeddings: int, data: Mapping[str, Any]) -> list[str]:
    """Sentences about tokens that the model's embedding has no row for.

    Args:
        embeddings: rows of the model's embedding.
        data: split -> encoded rows.
    """
    advice = (
        f"The model's embedding has {embeddings} rows. Use the model's own tokenizer, or enlarge "
        "the model first (model.resize_token_embeddings) and train the new rows with "
        "modules_to_save=['embed_tokens', 'lm_head']."
    )
    problems = []
    pad = tokenizer.pad_token_id
    if pad is not None and pad >= embeddings:
        problems.append(f"the tokenizer's pad token {tokenizer.pad_token!r} has the id {pad}.")
    if len(tokenizer) > embeddings:
        for split, rows in data.items():
            found = _beyond(rows, embeddings)
            if found is not None:
                row, token = found
                text = tokenizer.convert_ids_to_tokens(token)
                problems.append(f"row {row} of '{split}' has the token {text!r} with id {token}.")
    return [f"{problem} {advice}" for problem in problems]


def _beyond(rows: Any, embeddings: int) -> tuple[int, int] | None:
    """(row, token) of the first token beyond the embedding; None where all are within."""
    if _largest(rows.table) < embeddings:
        return None
    for row in (rows[i] for i in range(len(rows))):
        for token in _tokens([row[name] for name in ID_COLUMNS if name in row]):
            if token >= embeddings:
                return row["row"], token
    return None


def _tokens(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else [t for inner in value for t in _tokens(inner)]


def _largest(table: Any) -> int:
    """The largest token id of an Arrow table; -1 of none."""
    import pyarrow.compute as pc

    largest = -1
    for name in ID_COLUMNS:
        if name not in table.column_names:
            continue
        for chunk in table.column(name).chunks:
            while hasattr(chunk, "flatten") and not chunk.type.equals("int32"):
                chunk = chunk.flatten()
            largest = max(largest, pc.max(chunk).as_py() or -1)
    return largest
