"""Edit distance with block shifts: worked examples, brute force, bounds of the search."""

import random
import time
from functools import cache

import pytest
from sacrebleu.metrics.lib_ter import translation_edit_rate

from main.evaluation.edit_distance import edit_distance, shift_edit_distance


def levenshtein(source: str, target: str) -> int:
    """The textbook recursion, nothing shared with the bit vectors."""

    @cache
    def rest(i: int, j: int) -> int:
        if i == len(source) or j == len(target):
            return len(source) - i + len(target) - j
        if source[i] == target[j]:
            return rest(i + 1, j + 1)
        return 1 + min(rest(i + 1, j), rest(i, j + 1), rest(i + 1, j + 1))

    return rest(0, 0)


def all_shifts(text: str) -> set[str]:
    return {
        rest[:place] + text[i:k] + rest[place:]
        for i in range(len(text))
        for k in range(i + 1, len(text) + 1)
        for rest in [text[:i] + text[k:]]
        for place in range(len(rest) + 1)
    }


def optimum(source: str, target: str) -> int:
    """Fewest shifts plus edits, every shift tried at every step."""
    best, seen, front, shifts = levenshtein(source, target), {source}, {source}, 0
    while front and shifts + 1 < best:
        shifts += 1
        front = {moved for text in front for moved in all_shifts(text)} - seen
        seen |= front
        best = min([best, *(shifts + levenshtein(text, target) for text in front)])
    return best


def random_pairs(count: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        letters = "abcdef"[: rng.randint(2, 6)]
        target = "".join(rng.choices(letters, k=rng.randint(0, 6)))
        free = "".join(rng.choices(letters, k=rng.randint(0, 6)))
        pairs.append((rng.choice([free, "".join(rng.sample(target, len(target)))]), target))
    return pairs


def test_guides_example_is_seven_insertions():
    result = shift_edit_distance("I love this cat.", "hahaha I love this cat.")
    assert result == (0, 7)
    assert result.total == 7


def test_swapped_halves_are_one_shift():
    # One move of "world " instead of 12 single edits.
    assert shift_edit_distance("world hello ", "hello world ") == (1, 0)


def test_shift_and_edit_add_up():
    # "ab" goes behind "12345", then x becomes c.
    assert shift_edit_distance("ab12345x", "12345abc") == (1, 1)


def test_words_can_be_the_symbols():
    assert shift_edit_distance(["the", "cat", "sat"], ["sat", "the", "cat"]) == (1, 0)


@pytest.mark.parametrize(
    ("source", "target", "total"), [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("ab", "ab", 0)]
)
def test_empty_and_equal_texts(source, target, total):
    assert shift_edit_distance(source, target).total == total


def test_plain_distance_equals_the_textbook_recursion():
    for source, target in random_pairs(500, seed=1):
        assert edit_distance(source, target) == levenshtein(source, target)
    long = "今天天气真好" * 30
    assert edit_distance(long, long[5:] + "我们") == 7


def test_greedy_total_lies_between_brute_force_and_plain_distance():
    pairs = random_pairs(600, seed=2)
    totals = [shift_edit_distance(*pair).total for pair in pairs]
    best = [optimum(*pair) for pair in pairs]
    plain = [levenshtein(*pair) for pair in pairs]
    assert all(b <= t <= p for b, t, p in zip(best, totals, plain, strict=True))
    # Greedy search misses a few; that it finds nearly all shows that shifts are looked for well.
    shifted = [(b, t) for b, t, p in zip(best, totals, plain, strict=True) if b < p]
    assert len(shifted) > 100
    assert sum(b == t for b, t in shifted) / len(shifted) > 0.9


def test_search_finds_nearly_what_sacrebleu_finds_on_short_texts():
    pairs = [(s, t) for s, t in random_pairs(400, seed=3) if s and t]
    ours = sum(shift_edit_distance(*pair).total for pair in pairs)
    theirs = sum(translation_edit_rate(list(s), list(t))[0] for s, t in pairs)
    assert ours == pytest.approx(theirs, rel=0.02)


def test_long_shuffled_texts_stay_fast():
    rng = random.Random(4)
    words = [f"w{rng.randint(0, 40)} " for _ in range(130)]
    source = "".join(words)[:500]
    rng.shuffle(words)
    target = "".join(words)[:500]
    started = time.monotonic()
    result = shift_edit_distance(source, target)
    # Half a second on an idle core; unbounded search takes minutes.
    assert time.monotonic() - started < 20
    assert result.shifts >= 3
    assert result.total < edit_distance(source, target)
