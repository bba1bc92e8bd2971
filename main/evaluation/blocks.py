"""Blocks of a text that may move: where source and target agree, the most promising first."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import NamedTuple

from main.evaluation.columns import Column

MAX_SUB_BLOCK = 10  # a run of equal symbols moves whole, or as a part of at most so many symbols
MAX_CELLS = (
    4_000_000  # cells searched for runs; over 2,000 symbols this limits how far a block moves
)
# Blocks are looked up by their first symbols: so many for whole runs, then so many for parts.
LONG, SHORT = MAX_SUB_BLOCK + 1, (8, 6, 5, 4, 3, 2, 1)
LATEST = 3  # a source begins with SHORT[3] at the latest: shorter ones stand at many places


class Block(NamedTuple):
    """source[start : start + length] stands in the target at `goal`; `gain` guesses its use."""

    gain: int
    length: int
    start: int
    goal: int


# (-gain, -length, start, goal): the most promising block sorts first.
Ranked = tuple[int, int, int, int]


class Alignment(NamedTuple):
    """One cheapest way from source to target.

    source_errors, target_errors: how many symbols before a position take part in no match.
    anchors: for each target position (and the end), the number of source symbols used up before.
    """

    source_errors: list[int]
    target_errors: list[int]
    anchors: list[int]


class Blocks:
    """Of one target; the sources come one after the other."""

    def __init__(self, target: str):
        self.target = target
        self.level = 0  # where the last source had enough of them
        self._long_places = self._places(LONG, range(len(target) - LONG + 1))
        self._all_places: dict[int, dict[str, list[int]]] = {}

    def best_first(self, source: str, alignment: Alignment) -> Iterator[Block]:
        """By gain, then length, then place: wrong where they stand, missing where they go.

        A block runs as far as source and target agree, or is one of the MAX_SUB_BLOCK shortest
        parts of such a run, and holds an error on both sides (Snover's two conditions on shifts).
        """
        waiting = sorted(self._long(source, alignment))
        longest = MAX_SUB_BLOCK
        for level in range(min(self.level, LATEST), len(SHORT)):
            self.level, least = level, SHORT[level]
            waiting += self._short(source, alignment, least, longest)
            waiting.sort()
            # Shorter ones gain less than twice their length, and come behind longer ones.
            ready = bisect_right(waiting, -2 * (least - 1), key=lambda block: block[0])
            for gain, length, start, goal in waiting[:ready]:
                yield Block(-gain, -length, start, goal)
            waiting, longest = waiting[ready:], least - 1

    def _long(self, source: str, alignment: Alignment) -> list[Ranked]:
        """Whole runs beyond MAX_SUB_BLOCK symbols: how far source and target agree from there."""
        wrong, absent, _ = alignment
        places, reach = self._long_places, MAX_CELLS // max(len(source), 1)
        starts = [s for s in range(len(source) - LONG + 1) if source[s : s + LONG] in places]
        found: list[Ranked] = []
        following: dict[int, int] = {}
        behind = len(source)
        for start in reversed(starts):
            if start != behind - 1:
                following = {}
            goals = places[source[start : start + LONG]]
            near = [goal for goal in goals if abs(goal - start) <= reach]
            following = {goal: following.get(goal + 1, LONG - 1) + 1 for goal in near}
            for goal, run in following.items():
                misplaced = wrong[start + run] - wrong[start]
                missing = absent[goal + run] - absent[goal]
                if misplaced and missing:
                    found.append((-(misplaced + missing), -run, start, goal))
            behind = start
        return found

    def _short(
        self, source: str, alignment: Alignment, least: int, longest: int
    ) -> Iterator[Ranked]:
        """Parts of `least` to `longest` symbols; looked for only where an error is near enough."""
        target, (wrong, absent, _) = self.target, alignment
        size, goal_size, reach = len(source), len(target), MAX_CELLS // max(len(source), 1)
        places = self._goals(absent, least, longest)
        starts = _near_errors(wrong, least, longest)
        for start in [s for s in starts if source[s : s + least] in places]:
            for goal in places[source[start : start + least]]:
                if abs(goal - start) > reach:
                    continue
                most = min(longest, size - start, goal_size - goal)
                for length in range(least, most + 1):
                    if source[start + length - 1] != target[goal + length - 1]:
                        break
                    misplaced = wrong[start + length] - wrong[start]
                    missing = absent[goal + length] - absent[goal]
                    if misplaced and missing:
                        yield -(misplaced + missing), -length, start, goal

    def _goals(self, absent: list[int], least: int, longest: int) -> dict[str, list[int]]:
        """All places where `least` symbols stand; of few symbols those near errors alone."""
        if least < SHORT[LATEST]:
            return self._places(least, _near_errors(absent, least, longest))
        if least not in self._all_places:
            every = range(len(self.target) - least + 1)
            self._all_places[least] = self._places(least, every)
        return self._all_places[least]

    def _places(self, least: int, goals: Iterable[int]) -> dict[str, list[int]]:
        """Of these goals, those where each `least` symbols stand."""
        found: dict[str, list[int]] = {}
        for goal in goals:
            found.setdefault(self.target[goal : goal + least], []).append(goal)
        return found


def _near_errors(errors: list[int], least: int, longest: int) -> list[int]:
    """Where a block of at least `least` symbols may begin and hold an error in `longest`."""
    ahead = errors[longest:] + errors[-1:] * longest
    pairs = zip(errors[: len(errors) - least], ahead, strict=False)
    return [place for place, (here, there) in enumerate(pairs) if there > here]


def align(source: str, target: str, columns: list[Column]) -> Alignment:
    """Walk the table back from its last cell; equal symbols are always matched."""
    i, j = len(source), len(target)
    source_errors, target_errors, anchors = [1] * i, [1] * j, [0] * j + [i]
    while i and j:
        bit = 1 << (j - 1)
        if source[i - 1] == target[j - 1]:
            i, j = i - 1, j - 1
            source_errors[i] = target_errors[j] = 0
            anchors[j] = i
        elif columns[i][0] & bit:
            j -= 1
            anchors[j] = i
        elif columns[i - 1][1] & bit:
            i -= 1
        else:
            i, j = i - 1, j - 1
            anchors[j] = i
    return Alignment(_running(source_errors), _running(target_errors), anchors)


def _running(flags: list[int]) -> list[int]:
    return list(accumulate(flags, initial=0))
