"""Edit distance with block shifts: worked examples, brute force, bounds of the search."""

import random
import time
from functools import cache

import pytest
import slow_edit_distance as slow
from sacrebleu.metrics.lib_ter import translation_edit_rate

from main.evaluation import many
from main.evaluation.blocks import MAX_CELLS
from main.evaluation.columns import Target, last_cell
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


TEXT = (
    "the reference of a LoRA policy is the base model with its adapter disabled so that the same "
    "log probabilities come out of it as from the model that was trained"
)
WORDS = TEXT.split()


def moved_words(rng: random.Random, count: int) -> tuple[str, str]:
    """A text, and one of which words were moved and replaced."""
    source = rng.choices(WORDS, k=count)
    target = list(source)
    for _ in range(rng.randint(0, 1 + count // 4)):
        start, length = rng.randrange(len(target)), rng.randint(1, 4)
        block = target[start : start + length]
        del target[start : start + length]
        place = rng.randint(0, len(target))
        target[place:place] = block
    for _ in range(rng.randint(0, count // 4)):
        target[rng.randrange(len(target))] = rng.choice(WORDS)
    return " ".join(source), " ".join(target)


def test_shifts_and_edits_are_those_of_the_plain_search_on_a_thousand_pairs():
    rng = random.Random(5)
    pairs = random_pairs(400, seed=6)
    pairs += [moved_words(rng, rng.randint(1, 8)) for _ in range(400)]
    repetitive = ["".join(rng.choices("ab", k=rng.randint(0, 40))) for _ in range(400)]
    pairs += list(zip(repetitive[::2], repetitive[1::2], strict=True))
    assert len(pairs) == 1000
    for pair in pairs:
        assert shift_edit_distance(*pair) == tuple(slow.shift_edit_distance(*pair)), pair


@pytest.mark.slow
def test_shifts_and_edits_are_those_of_the_plain_search_where_its_bounds_bind():
    rng = random.Random(7)
    pairs = [moved_words(rng, 100), (moved_words(rng, 60)[0], moved_words(rng, 60)[1])]
    pairs += [("ab" * 150, "ba" * 100 + "c" * 40)]
    results = [slow.shift_edit_distance(*pair) for pair in pairs]
    assert [shift_edit_distance(*pair) for pair in pairs] == [tuple(result) for result in results]
    assert [result.shifts > 10 for result in results] == [True, True, False]


@pytest.mark.slow
def test_blocks_move_no_further_than_the_plain_search_lets_them(monkeypatch):
    rng = random.Random(8)
    monkeypatch.setattr("main.evaluation.blocks.MAX_CELLS", 2000)
    monkeypatch.setattr(slow, "MAX_CELLS", 2000)
    for _ in range(20):
        pair = moved_words(rng, 25)
        near = shift_edit_distance(*pair)
        assert near == tuple(slow.shift_edit_distance(*pair))


def test_the_last_cell_of_each_column_is_the_distance_of_the_beginning_so_far():
    rng = random.Random(9)
    for size in (1, 7, 8, 9, 70):
        source, goal = ("".join(rng.choices("abc", k=k)) for k in (50, size))
        target = Target(goal)
        known = target.columns(source[:20], [target.first_column()])
        columns = target.columns(source, known)
        cells = [last_cell(cut, column) for cut, column in enumerate(columns)]
        assert cells == [levenshtein(source[:cut], goal) for cut in range(51)]


def test_a_hundred_words_take_a_fraction_of_the_plain_search():
    pair = moved_words(random.Random(10), 100)
    started = time.process_time()
    slow.shift_edit_distance(*pair)
    plain = time.process_time() - started
    started = time.process_time()
    shift_edit_distance(*pair)
    assert time.process_time() - started < plain / 3


@pytest.mark.parametrize("text", ["a", "ab", "the reference of a LoRA policy "])
def test_texts_of_thousands_of_repeated_symbols_end_in_seconds(text):
    source = (text * 3000)[:3000]
    started = time.process_time()
    shift_edit_distance(source, source[1000:] + "x" * 500)
    assert time.process_time() - started < 30  # about two on an idle core
    assert MAX_CELLS == 4_000_000


def test_other_processors_help_with_many_pairs_and_give_the_same(monkeypatch):
    rng = random.Random(11)
    pairs = [moved_words(rng, 8) for _ in range(40)]
    expected = [shift_edit_distance(*pair).total for pair in pairs]
    asked = []
    monkeypatch.setattr(many, "ALONE", 0.0)
    monkeypatch.setattr(many, "_processors", lambda: asked.append(1) or 2)
    assert list(many.shift_edits(pairs)) == expected
    assert asked == [1]
    assert list(many.shift_edits([])) == []


def test_a_bar_is_shown_in_a_terminal_where_scoring_takes_long(monkeypatch, capsys):
    pairs = [("ab", "ba")] * 5
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(many.shift_edits(pairs))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(many, "SHOWN_AFTER", 0.0)
    list(many.shift_edits(pairs))
    assert "scores" in capsys.readouterr().err


def test_processes_that_die_leave_no_pair_undone(monkeypatch):
    class Broken:
        def __init__(self, *_):
            pass

        def map(self, work, pairs, chunksize):
            yield work(pairs[0])
            raise many.BrokenProcessPool("killed")

        def shutdown(self, cancel_futures):
            pass

    pairs = [moved_words(random.Random(seed), 6) for seed in range(5)]
    monkeypatch.setattr(many, "ALONE", 0.0)
    monkeypatch.setattr(many, "_processors", lambda: 2)
    monkeypatch.setattr(many, "ProcessPoolExecutor", Broken)
    assert list(many.shift_edits(pairs)) == [shift_edit_distance(*pair).total for pair in pairs]


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
