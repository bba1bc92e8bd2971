"""sacreBLEU's TER in less time: its number of edits on random pairs, and its corpus score."""

import random
import time

import pytest
from sacrebleu.metrics import TER
from sacrebleu.metrics.lib_ter import translation_edit_rate

from main.evaluation.beam import Band
from main.evaluation.ter import FastTER, ter_edits


def random_pair(rng: random.Random, longest: int) -> tuple[list[str], list[str]]:
    """Unrelated words, or words of which blocks were moved and some replaced."""
    letters = "abcdefghij"[: rng.randint(1, 10)]
    first = rng.choices(letters, k=rng.randint(0, longest))
    if rng.random() < 0.5 or not first:
        return first, rng.choices(letters, k=rng.randint(0, longest))
    second = list(first)
    for _ in range(rng.randint(0, 4)):
        start, length = rng.randrange(len(second)), rng.randint(1, 6)
        block = second[start : start + length]
        del second[start : start + length]
        place = rng.randint(0, len(second))
        second[place:place] = block
    for _ in range(rng.randint(0, 5)):
        second[rng.randrange(len(second))] = rng.choice(letters)
    return first, second


def test_edits_are_those_of_sacrebleu_on_a_thousand_pairs():
    rng = random.Random(1)
    for _ in range(1000):
        pair = random_pair(rng, 14)
        assert ter_edits(*pair) == translation_edit_rate(*pair)[0], pair


@pytest.mark.parametrize(("first", "second"), [(1, 90), (90, 1), (2, 120), (70, 20), (60, 61)])
def test_edits_are_those_of_sacrebleu_where_the_band_cuts(first, second):
    rng = random.Random(2)
    pair = rng.choices("abcd", k=first), rng.choices("abcd", k=second)
    assert ter_edits(*pair) == translation_edit_rate(*pair)[0]


@pytest.mark.slow
def test_edits_are_those_of_sacrebleu_beyond_its_most_candidates():
    rng = random.Random(3)
    for letters in ("ab", "abcdefgh"):
        pair = rng.choices(letters, k=110), rng.choices(letters, k=100)
        assert ter_edits(*pair) == translation_edit_rate(*pair)[0]


def test_the_corpus_score_is_sacrebleus_with_several_references():
    texts = ["the cat sat on the mat", "", "rain fell the whole day"]
    references = [
        ["on the mat the cat sat", "x", "it rained all day"],
        ["the cat sat down", "y z", "the whole day rain fell"],
    ]
    ours, theirs = (kind().corpus_score(texts, references) for kind in (FastTER, TER))
    assert ours.score == theirs.score
    assert 10 < ours.score < 100


def test_a_changed_text_has_the_distance_of_its_own_table():
    rng = random.Random(4)
    source, target = rng.choices(range(5), k=80), rng.choices(range(5), k=90)
    band = Band(source, target, 25)
    for _ in range(20):
        first = rng.randrange(80)
        changed = rng.choices(range(5), k=rng.randint(1, 80 - first))
        text = [*source[:first], *changed, *source[first + len(changed) :]]
        own = Band(text, target, 25)
        assert band.distances([first], [changed]).tolist() == [own.distance]
        band.replace(first, changed)
        source = text
        assert band.distance == own.distance
        assert (band.forward[1:] == own.forward[1:])[own.forward[1:] < 1000].all()
        assert (band.backward == own.backward)[own.backward < 1000].all()


@pytest.mark.slow
def test_a_pair_of_a_thousand_characters_takes_less_than_sacrebleu_for_two_hundred():
    rng = random.Random(5)
    characters = [chr(0x4E00 + i) for i in range(300)]
    text = rng.choices(characters, k=1000)
    other = [c if rng.random() < 0.85 else rng.choice(characters) for c in text]
    started = time.perf_counter()
    ter_edits(text, [*other[500:520], *other[:500], *other[520:]])
    ours = time.perf_counter() - started
    started = time.perf_counter()
    translation_edit_rate(text[:200], [*other[100:150], *other[:100], *other[150:200]])
    assert ours < time.perf_counter() - started
