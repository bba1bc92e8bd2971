"""TER of sacreBLEU to its last digit, in a fraction of its time.

The search for shifts is sacreBLEU's, which follows Tercom (Snover et al. 2006): its order, its
conditions and its limits. The distances of the shifted texts come from `main.evaluation.beam`.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from sacrebleu.metrics import TER
from sacrebleu.metrics.lib_ter import (
    _BEAM_WIDTH,
    _MAX_SHIFT_CANDIDATES,
    _MAX_SHIFT_DIST,
    _MAX_SHIFT_SIZE,
)

from main.evaluation.beam import Band


class FastTER(TER):
    """sacreBLEU's metric, with its own statistics of a row."""

    def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict) -> list[float]:
        """[fewest edits to one of the references, mean length of the references]."""
        words = hypothesis.split()
        references = ref_kwargs["ref_words"]
        edits = [ter_edits(words, reference) for reference in references]
        return [min(edits), sum(map(len, references)) / len(references)]


class Shift(NamedTuple):
    """A block of source[start : start + length] that moves to before `goal`; see `_moved`."""

    start: int
    length: int
    goal: int


class Trace(NamedTuple):
    """One cheapest way from source to target.

    source_errors, target_errors: how many symbols before a position take part in no match.
    anchors: for each symbol of the target the one of the source that is used up last; -1 = none.
    """

    source_errors: list[int]
    target_errors: list[int]
    anchors: list[int]


def ter_edits(words: Sequence[str], reference: Sequence[str]) -> int:
    """Shifts and edits that turn `words` into `reference`."""
    if not (words and reference):
        return max(len(words), len(reference))
    numbers = {word: number for number, word in enumerate(dict.fromkeys([*words, *reference]))}
    source, target = [numbers[w] for w in words], [numbers[w] for w in reference]
    band = Band(source, target, _beam_width(len(target) / len(source)))
    shifts = checked = 0
    while True:
        candidates = _candidates(source, target, _trace(band, source, target), checked)
        checked += len(candidates)
        best = _best(band, source, candidates)
        if checked >= _MAX_SHIFT_CANDIDATES or best is None:
            return shifts + band.distance
        first, changed = _moved(source, best)
        source[first : first + len(changed)] = changed
        band.replace(first, changed)
        shifts += 1


def _beam_width(ratio: float) -> int:
    return math.ceil(ratio / 2 + _BEAM_WIDTH) if ratio / 2 > _BEAM_WIDTH else _BEAM_WIDTH


def _best(band: Band, source: list[int], candidates: list[Shift]) -> Shift | None:
    """The shift that saves most; of equal ones the longest, then the leftmost."""
    if not candidates:
        return None
    changes = [_moved(source, shift) for shift in candidates]
    distances = band.distances([first for first, _ in changes], [new for _, new in changes])
    ranked = zip((band.distance - distances).tolist(), candidates, strict=True)
    saved, best = max(ranked, key=lambda one: (one[0], one[1].length, -one[1].start, -one[1].goal))
    return best if saved > 0 else None


def _moved(source: list[int], shift: Shift) -> tuple[int, list[int]]:
    """(first position that changes, the symbols that then stand from there on)."""
    start, length, goal = shift
    end = start + length
    block = source[start:end]
    if goal < start:
        return goal, block + source[goal:start]
    # A goal inside the block counts from the block's end on.
    stop = goal if goal > end else end + goal - start
    return start, source[end:stop] + block


def _candidates(source: list[int], target: list[int], trace: Trace, checked: int) -> list[Shift]:
    """Blocks that are wrong where they stand and missing where they go, each with its goals."""
    found: list[Shift] = []
    for start, goal, length in _matches(source, target):
        wrong = trace.source_errors[start + length] - trace.source_errors[start]
        missing = trace.target_errors[goal + length] - trace.target_errors[goal]
        if wrong and missing and not start <= trace.anchors[goal] < start + length:
            before = trace.anchors[goal - 1] if goal else -1
            places = [before, *trace.anchors[goal : goal + length]]
            found += [Shift(start, length, place + 1) for place in dict.fromkeys(places)]
            if checked + len(found) >= _MAX_SHIFT_CANDIDATES:
                break
    return found


def _matches(source: list[int], target: list[int]) -> Iterator[tuple[int, int, int]]:
    """(start, goal, length) of equal blocks that are near enough, in the order of their places."""
    places: dict[int, list[int]] = {}
    for place, symbol in enumerate(target):
        places.setdefault(symbol, []).append(place)
    for start, symbol in enumerate(source):
        for goal in places.get(symbol, []):
            if abs(goal - start) <= _MAX_SHIFT_DIST:
                most = min(_MAX_SHIFT_SIZE, len(source) - start, len(target) - goal)
                length = 0
                while length < most and source[start + length] == target[goal + length]:
                    length += 1
                    yield start, goal, length


def _trace(band: Band, source: list[int], target: list[int]) -> Trace:
    """Walk the table back; a match or a substitution is preferred, then a deletion."""
    i, j = len(source), len(target)
    source_errors, target_errors, anchors = [1] * i, [1] * j, [0] * j
    while i or j:
        here = band.value(i, j)
        differs = int(bool(i and j) and source[i - 1] != target[j - 1])
        if i and j and band.value(i - 1, j - 1) + differs == here:
            i, j = i - 1, j - 1
            source_errors[i] = target_errors[j] = differs
            anchors[j] = i
        elif i and band.value(i - 1, j) + 1 == here:
            i -= 1
        else:
            j -= 1
            anchors[j] = i - 1
    return Trace(_running(source_errors), _running(target_errors), anchors)


def _running(flags: list[int]) -> list[int]:
    return list(accumulate(flags, initial=0))
