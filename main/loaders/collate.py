"""Rows of unequal length -> rectangular tensors."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from main.vision import VisionProcessor, media


def pad(
    sequences: Sequence[Sequence[int]], value: int | bool, side: Literal["left", "right"] = "right"
) -> torch.Tensor:
    """Sequences of B unequal lengths -> (B, T), T the longest; int64, or bool for a bool `value`.

    Training pads on the right, generation on the left.
    """
    dtype = torch.bool if isinstance(value, bool) else torch.long
    width = max((len(sequence) for sequence in sequences), default=0)
    result = torch.full((len(sequences), width), value, dtype=dtype)
    for row, sequence in zip(result, sequences, strict=True):
        place = slice(0, len(sequence)) if side == "right" else slice(width - len(sequence), width)
        row[place] = torch.as_tensor(sequence, dtype=dtype)
    return result


def collate_sft(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, Any]:
    """Encoded chat or context/target rows -> one batch, padded on the right.

    The attention mask comes from the lengths, never from the ids: the pad token may be the end
    token, which is trained.

    Returns:
        input_ids (B, T); attention_mask, loss_mask (B, T) bool, True = keep; weights (B, T) of the
        trained tokens, None where each counts 1; row (B,), the numbers of the rows in their file.
    """
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, pad_id),
        "attention_mask": pad([[True] * len(sequence) for sequence in ids], False),
        "loss_mask": pad([row["loss_mask"] for row in rows], False),
        "weights": _weights(rows),
        "row": torch.tensor([row["row"] for row in rows], dtype=torch.long),
    }


def _weights(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor | None:
    """(B, T) float32, 0 where nothing is trained; None where every trained token counts 1."""
    if not any(row.get("weights") for row in rows):
        return None
    found = [row.get("weights") or [float(kept) for kept in row["loss_mask"]] for row in rows]
    width = max(len(row["input_ids"]) for row in rows)
    return torch.tensor([[*weights, *[0.0] * (width - len(weights))] for weights in found])


def collate_images(
    rows: Sequence[Mapping[str, Any]], input_ids: torch.Tensor, vision: VisionProcessor | None
) -> dict[str, torch.Tensor]:
    """What a model needs beside the ids (B, T) of rows with images; {} when none has any.

    Raises:
        DataError: an image that is gone, or of another size than when the rows were encoded.
    """
    visuals = [media.load(row.get("images") or "") for row in rows]
    if vision is None or not any(visuals):
        return {}
    names = [f"row {row['row']}" for row in rows]
    pixels = vision.inputs([row["input_ids"] for row in rows], visuals, names)
    return pixels | vision.token_types(input_ids)
