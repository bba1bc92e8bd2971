"""Padding."""

import torch

from main.loaders.collate import collate_sft, pad


def test_padding_goes_to_the_side_that_is_asked_for() -> None:
    assert pad([[1, 2], [3]], 9).tolist() == [[1, 2], [3, 9]]
    assert pad([[1, 2], [3]], 9, side="left").tolist() == [[1, 2], [9, 3]]
    assert pad([[], [3]], 0, side="left").tolist() == [[0], [3]]


def test_masks_are_boolean_and_ids_are_int64() -> None:
    assert pad([[True], [False, True]], False).dtype == torch.bool
    assert pad([[1]], 0).dtype == torch.int64
    assert pad([], 0).shape == (0, 0)


def test_the_attention_mask_comes_from_lengths_not_from_ids() -> None:
    rows = [
        {"input_ids": [5, 2], "loss_mask": [False, True], "row": 11},
        {"input_ids": [5, 6, 2], "loss_mask": [False, True, True], "row": 4},
    ]
    batch = collate_sft(rows, pad_id=2)  # 2 also ends the answers
    assert batch["input_ids"].tolist() == [[5, 2, 2], [5, 6, 2]]
    assert batch["attention_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["loss_mask"].tolist() == [[False, True, False], [False, True, True]]
    assert batch["row"].tolist() == [11, 4]
