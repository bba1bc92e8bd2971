"""Which rows make up a step, and how processes and micro-batches share it."""

import random

import pytest

from main.loaders.order import plan_epoch, shard

RNG = random.Random(0)
LENGTHS = [RNG.randint(4, 400) for _ in range(203)]


def padded(steps: list[list[int]]) -> int:
    """Tokens that a step costs when its rows are one batch."""
    return sum(len(step) * max(LENGTHS[row] for row in step) for step in steps)


@pytest.mark.parametrize("grouped", [True, False])
def test_every_row_is_in_exactly_one_step_and_the_short_step_is_last(grouped):
    steps = plan_epoch(LENGTHS, 8, seed=1, epoch=2, group_by_length=grouped)
    assert sorted(row for step in steps for row in step) == list(range(203))
    assert [len(step) for step in steps] == [8] * 25 + [3]


def test_the_order_follows_seed_and_epoch_and_nothing_else():
    plans = [plan_epoch(LENGTHS, 8, seed, epoch) for seed, epoch in [(1, 1), (1, 2), (2, 1)]]
    assert plan_epoch(LENGTHS, 8, 1, 1) == plans[0]
    assert all(plans[i] != plans[j] for i, j in [(0, 1), (0, 2), (1, 2)])


def test_rows_of_like_length_share_a_step():
    grouped = padded(plan_epoch(LENGTHS, 8, 1, 1))
    mixed = padded(plan_epoch(LENGTHS, 8, 1, 1, group_by_length=False))
    assert grouped < 1.1 * sum(LENGTHS) < 0.7 * mixed


def test_the_longest_row_is_in_the_first_step_so_that_too_little_memory_shows_at_once():
    for seed in range(5):
        first = plan_epoch(LENGTHS, 8, seed, 1)[0]
        assert max(LENGTHS) in [LENGTHS[row] for row in first]


def test_after_the_first_epoch_the_longest_row_comes_where_the_draw_puts_it():
    longest = max(LENGTHS)
    places = set()
    for epoch in range(2, 12):
        plan = plan_epoch(LENGTHS, 8, 1, epoch)
        places.add(next(i for i, step in enumerate(plan) if longest in [LENGTHS[r] for r in step]))
    assert len(places) > 5  # ten draws of 25 places


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("rows", [1, 3, 8, 12])
def test_processes_share_a_step_in_as_many_micro_batches_each(rows, world):
    step = list(range(rows))
    shares = [shard(step, LENGTHS, 2, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1  # or one process would wait for ever
    counted = [piece.rows for share in shares for piece in share if piece.counted]
    assert sorted(row for piece in counted for row in piece) == step
    assert all(1 <= len(piece.rows) <= 2 for share in shares for piece in share)


def test_a_process_without_a_row_gets_one_that_does_not_count():
    shares = [shard([5], LENGTHS, 4, rank, world=2) for rank in range(2)]
    assert [(piece.rows, piece.counted) for share in shares for piece in share] == [
        ([5], True),
        ([5], False),
    ]
