"""Mixtures: how often an epoch draws from what, worked out by hand; and the plan of an epoch."""

import doctest
from collections import Counter

import pytest

from main.loaders import shares
from main.loaders.order import plan_epoch
from main.loaders.shares import AGAIN, Share, drawn, draws, of_records


def test_the_example_of_the_documentation() -> None:
    assert doctest.testmod(shares).attempted == 1 and not doctest.testmod(shares).failed


@pytest.mark.parametrize(
    ("rows", "weights", "expected"),
    [
        ((10, 10), (1, 1), [10, 10]),
        ((10, 10), (3, 1), [15, 5]),
        ((100, 1), (1, 1), [51, 50]),  # 101 / 2 each: the first gets what is left
        ((7, 7, 7), (1, 1, 1), [7, 7, 7]),
        ((5, 5), (1e-9, 1), [0, 10]),
        ((3, 3), (0.2, 0.1), [4, 2]),
    ],
)
def test_an_epoch_has_as_many_draws_as_there_are_rows(rows, weights, expected) -> None:
    found = [Share("", n, w) for n, w in zip(rows, weights, strict=True)]
    assert draws(found) == expected
    assert draws([s._replace(weight=s.weight * 8) for s in found]) == expected


def test_every_row_of_an_entry_is_drawn_once_before_any_is_drawn_again() -> None:
    mixture = [Share("large", 10, 1.0), Share("small", 3, 2.0)]  # 13 draws: 4 and 9
    counts: Counter = Counter()
    for epoch in range(1, 6):
        rows = drawn(mixture, 7, epoch)
        assert len(rows) == len(set(rows)) == 13
        assert Counter(row % AGAIN < 10 for row in rows) == {True: 4, False: 9}
        counts.update(row % AGAIN for row in rows)
        for entry in (range(10), range(10, 13)):
            drawn_of = [counts[row] for row in entry]
            assert max(drawn_of) - min(drawn_of) <= 1
    assert [counts[row] for row in range(10)] == [2] * 10  # 5 epochs of 4 draws


def test_the_seed_and_the_epoch_alone_decide() -> None:
    mixture = [Share("a", 10, 1.0), Share("b", 3, 2.0)]
    assert drawn(mixture, 7, 2) == drawn(mixture, 7, 2)
    assert drawn(mixture, 7, 2) != drawn(mixture, 8, 2)
    renamed = [share._replace(name="x") for share in mixture]
    assert drawn(renamed, 7, 2) == drawn(mixture, 7, 2)


@pytest.mark.parametrize("grouped", [True, False])
def test_a_plan_has_the_draws_of_its_epoch(grouped: bool) -> None:
    mixture = [Share("a", 10, 1.0), Share("b", 3, 2.0)]
    lengths = [*range(1, 11), 100, 5, 5]
    plan = plan_epoch(lengths, 4, 3, 1, grouped, mixture)
    assert sorted(row for step in plan for row in step) == sorted(drawn(mixture, 3, 1))
    assert list(map(len, plan)) == [4, 4, 4, 1]
    assert not grouped or 10 in [row % AGAIN for row in plan[0]]  # the longest row comes first


def test_records_made_of_rows_keep_the_shares() -> None:
    mixture = [Share("a", 3, 1.0), Share("b", 2, 2.0), Share("c", 1, 1.0)]
    # row 0 has two pairs, row 1 none, row 5 none
    assert of_records(mixture, [0, 0, 2, 3, 4, 4]) == (Share("a", 3, 1.0), Share("b", 3, 2.0))
