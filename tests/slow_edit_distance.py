"""The search for shifts in its plain form: all blocks, and every column of every shifted text.

What `main.evaluation.edit_distance` has to agree with, move by move.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

# The search is greedy, as in TERCOM and sacreBLEU, and bounded like theirs. For one pair of texts:
MAX_CANDIDATES = 1000  # shifted texts tried in all, the most promising ones first
MAX_COLUMNS = 200_000  # columns computed for them; binds for texts of over 200 symbols
# ... and for one shift:
MAX_TRIES = 30  # shifted texts tried
MAX_SUB_BLOCK = 10  # a run of equal symbols moves whole, or as a part of at most so many symbols
MAX_CELLS = (
    4_000_000  # cells searched for runs; over 2,000 symbols this limits how far a block moves
)


class ShiftEdits(NamedTuple):
    """How one text becomes another: `shifts` moved blocks, then `edits` single symbols."""

    shifts: int
    edits: int

    @property
    def total(self) -> int:
        return self.shifts + self.edits


class Column(NamedTuple):
    """Differences down one column: bit j of `up` (`down`): cell j + 1 = cell j plus (minus) 1."""

    up: int
    down: int


class Block(NamedTuple):
    """source[start : start + length] stands in the target at `goal`; `gain` guesses its use."""

    gain: int
    length: int
    start: int
    goal: int


class Alignment(NamedTuple):
    """One cheapest way from source to target.

    source_errors, target_errors: True where a symbol takes part in no match.
    anchors: for each target position (and the end), the number of source symbols used up before.
    """

    source_errors: list[bool]
    target_errors: list[bool]
    anchors: list[int]


class Target:
    """The text to reach, with the positions of each of its symbols as a bit mask."""

    def __init__(self, symbols: Sequence[str]):
        self.symbols = list(symbols)
        self.full = (1 << len(self.symbols)) - 1
        self.masks: dict[str, int] = {}
        for position, symbol in enumerate(self.symbols):
            self.masks[symbol] = self.masks.get(symbol, 0) | 1 << position

    def first_column(self) -> Column:
        return Column(self.full, 0)

    def next_column(self, column: Column, symbol: str) -> Column:
        """The column after one more source symbol."""
        up, down = column
        here = self.masks.get(symbol, 0)
        diagonal = (((here & up) + up) ^ up) | here | down
        right = (down | (self.full & ~(diagonal | up))) << 1 | 1
        left = (diagonal & up) << 1
        return Column((left | ~(diagonal | right)) & self.full, right & diagonal & self.full)

    def columns(self, source: Sequence[str]) -> list[Column]:
        """All len(source) + 1 columns."""
        return list(accumulate(source, self.next_column, initial=self.first_column()))


def edit_distance(source: Sequence[str], target: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions of one symbol (Levenshtein)."""
    goal = Target(target)
    return _last_cell(len(source), goal.columns(source)[-1])


def shift_edit_distance(source: Sequence[str], target: Sequence[str]) -> ShiftEdits:
    """Turn `source` into `target` by moving blocks and editing single symbols, each at cost 1.

    As long as a shift lowers the plain edit distance, the one that lowers it most is made. That is
    greedy, so the total may lie above the true minimum (which is NP-hard to find); it is never
    above the plain edit distance.

    Args:
        source: symbols (characters of a str, or words of a list) to start from.
        target: symbols to reach.
    """
    goal, current = Target(target), list(source)
    budget = Budget()
    shifts = 0
    while True:
        columns = goal.columns(current)
        distance = _last_cell(len(current), columns[-1])
        shifted = _best_shift(current, goal, columns, distance, budget)
        if shifted is None:
            return ShiftEdits(shifts, distance)
        current = shifted
        shifts += 1


class Budget:
    """What is left of MAX_CANDIDATES and MAX_COLUMNS for one pair of texts."""

    def __init__(self) -> None:
        self.candidates = MAX_CANDIDATES
        self.columns = MAX_COLUMNS

    def spend(self, columns: int) -> bool:
        """Pay for one candidate; False when nothing is left."""
        self.candidates -= 1
        self.columns -= columns
        return self.candidates >= 0 and self.columns >= 0


def _best_shift(
    source: list[str], target: Target, columns: list[Column], distance: int, budget: Budget
) -> list[str] | None:
    """The source after its most useful shift, or None when none lowers the distance."""
    best, best_saving = None, 0
    # No distance is below the difference in length.
    most = distance - abs(len(source) - len(target.symbols))
    alignment = _align(source, target, columns)
    candidates = _candidates(_blocks(source, target, alignment), alignment)
    for block, anchor in islice(candidates, MAX_TRIES):
        if best_saving >= most:
            break
        # A block of L symbols that moves saves at most L deletions and L insertions.
        if 2 * block.length <= best_saving:
            continue
        shifted, changed = _move(source, block, anchor)
        if not budget.spend(len(source) - changed):
            break
        column = columns[changed]
        for symbol in shifted[changed:]:
            column = target.next_column(column, symbol)
        saving = distance - _last_cell(len(shifted), column)
        if saving > best_saving:
            best, best_saving = shifted, saving
    return best


def _candidates(blocks: list[Block], alignment: Alignment) -> Iterator[tuple[Block, int]]:
    """Each block with the places it may go: after what precedes it, or before what follows it."""
    for block in blocks:
        ends = {alignment.anchors[block.goal], alignment.anchors[block.goal + block.length]}
        for anchor in sorted(ends):
            if not block.start <= anchor <= block.start + block.length:
                yield block, anchor


def _move(source: list[str], block: Block, anchor: int) -> tuple[list[str], int]:
    """The source with `block` put before position `anchor`, and the first position that changed."""
    end = block.start + block.length
    moved = source[block.start : end]
    if anchor < block.start:
        return source[:anchor] + moved + source[anchor : block.start] + source[end:], anchor
    return source[: block.start] + source[end:anchor] + moved + source[anchor:], block.start


def _blocks(source: list[str], target: Target, alignment: Alignment) -> list[Block]:
    """Blocks worth moving, the most promising first: wrong where they stand, missing where they go.

    A block runs as far as source and target agree, or is one of the MAX_SUB_BLOCK shortest parts of
    such a run, and holds an error on both sides (Snover's two conditions on shifts).
    """
    wrong_source = _running_count(alignment.source_errors)
    wrong_target = _running_count(alignment.target_errors)
    found = []
    for start, goal, run in _runs(source, target):
        for length in {*range(1, min(run, MAX_SUB_BLOCK) + 1), run}:
            misplaced = wrong_source[start + length] - wrong_source[start]
            missing = wrong_target[goal + length] - wrong_target[goal]
            if misplaced and missing:
                found.append(Block(-(misplaced + missing), -length, start, goal))
    found.sort()
    return [Block(-gain, -length, start, goal) for gain, length, start, goal in found]


def _runs(source: list[str], target: Target) -> Iterator[tuple[int, int, int]]:
    """(start, goal, length) for pairs of equal symbols: how far the texts agree from there."""
    positions: dict[str, list[int]] = {}
    for position, symbol in enumerate(target.symbols):
        positions.setdefault(symbol, []).append(position)
    reach = MAX_CELLS // max(len(source), 1)
    following: dict[int, int] = {}
    for start in range(len(source) - 1, -1, -1):
        goals = positions.get(source[start], [])
        near = goals[bisect_left(goals, start - reach) : bisect_right(goals, start + reach)]
        following = {goal: following.get(goal + 1, 0) + 1 for goal in near}
        for goal, length in following.items():
            yield start, goal, length


def _align(source: list[str], target: Target, columns: list[Column]) -> Alignment:
    """Walk the table back from its last cell; equal symbols are always matched."""
    i, j = len(source), len(target.symbols)
    source_errors, target_errors, anchors = [True] * i, [True] * j, [0] * j + [i]
    while i and j:
        bit = 1 << (j - 1)
        if source[i - 1] == target.symbols[j - 1]:
            i, j = i - 1, j - 1
            source_errors[i] = target_errors[j] = False
            anchors[j] = i
        elif columns[i].up & bit:
            j -= 1
            anchors[j] = i
        elif columns[i - 1].down & bit:
            i -= 1
        else:
            i, j = i - 1, j - 1
            anchors[j] = i
    return Alignment(source_errors, target_errors, anchors)


def _running_count(flags: list[bool]) -> list[int]:
    return list(accumulate(flags, initial=0))


def _last_cell(first: int, column: Column) -> int:
    """The column's last cell, given its first one."""
    return first + column.up.bit_count() - column.down.bit_count()
