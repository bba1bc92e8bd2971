"""Edit distance with block shifts, what TER counts (Snover et al. 2006, "A Study of Translation
Edit Rate with Targeted Human Annotation", section 3).

A text with a moved block differs from the source between the block's old place and its new one.
Only there are columns computed: those of the beginning are the source's, and so are those of the
end, which are read backwards (`main.evaluation.columns.least_sums`).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from main.evaluation.blocks import Alignment, Blocks, align
from main.evaluation.columns import Column, Target, last_cell, least_sums

# The search is greedy, as in TERCOM and sacreBLEU, and bounded like theirs. For one pair of texts:
MAX_CANDIDATES = 1000  # shifted texts tried in all, the most promising ones first
MAX_COLUMNS = 200_000  # columns from a text's first change to its end, in all; see `Budget`
MAX_TRIES = 30  # shifted texts tried for one shift
NEAR = 16  # symbols between blocks whose columns are computed together


class ShiftEdits(NamedTuple):
    """How one text becomes another: `shifts` moved blocks, then `edits` single symbols."""

    shifts: int
    edits: int

    @property
    def total(self) -> int:
        return self.shifts + self.edits


class Move(NamedTuple):
    """source[start:end] goes before position `anchor`, which lies outside of it."""

    start: int
    end: int
    anchor: int

    @property
    def changed(self) -> tuple[int, int]:
        """The first position that changes, and the first behind it that does not."""
        return min(self.start, self.anchor), max(self.end, self.anchor)

    def turned(self, size: int) -> "Move":
        """The same of a text of `size` symbols that is read backwards."""
        return Move(size - self.end, size - self.start, size - self.anchor)


def edit_distance(source: Sequence[str], target: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions of one symbol (Levenshtein)."""
    first, second = _as_texts(source, target)
    goal = Target(second)
    return last_cell(len(first), goal.after(goal.first_column(), first))


def shift_edit_distance(source: Sequence[str], target: Sequence[str]) -> ShiftEdits:
    """Turn `source` into `target` by moving blocks and editing single symbols, each at cost 1.

    As long as a shift lowers the plain edit distance, the one that lowers it most is made. That is
    greedy, so the total may lie above the true minimum (which is NP-hard to find); it is never
    above the plain edit distance.

    Args:
        source: symbols (characters of a str, or words of a list) to start from.
        target: symbols to reach.
    """
    search = Search(*_as_texts(source, target))
    shifts = 0
    while (move := search.best_move()) is not None:
        search.make(move)
        shifts += 1
    return ShiftEdits(shifts, search.distance)


def _as_texts(source: Sequence[str], target: Sequence[str]) -> tuple[str, str]:
    """Both with one character for each symbol."""
    if isinstance(source, str) and isinstance(target, str):
        return source, target
    characters = {s: chr(i) for i, s in enumerate(dict.fromkeys([*source, *target]))}
    return "".join(characters[s] for s in source), "".join(characters[s] for s in target)


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


class Search:
    """The source as it is after the moves so far, and its columns in both directions.

    heads[i]: after its first i symbols; tails[i]: after its last i, read backwards.
    """

    def __init__(self, source: str, target: str):
        self.source, self.budget, self.blocks = source, Budget(), Blocks(target)
        self.target, self.turned = Target(target), Target(target[::-1])
        self.heads = _columns(self.target, source, [self.target.first_column()])
        self.tails = _columns(self.turned, source[::-1], [self.turned.first_column()])

    @property
    def distance(self) -> int:
        return last_cell(len(self.source), self.heads[-1])

    def best_move(self) -> Move | None:
        """The most useful one, or None when none lowers the distance."""
        alignment = align(self.source, self.target.text, self.heads)
        moves = list(islice(self._moves(alignment), MAX_TRIES)) if self.distance else []
        distance, size = self.distance, len(self.source)
        most = distance - abs(size - len(self.target.text))  # no distance is below that of lengths
        best, best_saving = None, 0
        for move, shifted in zip(moves, self._distances(moves), strict=True):
            if best_saving >= most:
                break
            # A block of L symbols that moves saves at most L deletions and L insertions.
            if 2 * (move.end - move.start) <= best_saving:
                continue
            if not self.budget.spend(size - move.changed[0]):
                break
            if distance - shifted > best_saving:
                best, best_saving = move, distance - shifted
        return best

    def make(self, move: Move) -> None:
        """Move the block; heads before the change stay, and tails behind it."""
        text, (first, last) = self.source, move.changed
        block = text[move.start : move.end]
        others = text[first : move.start] + text[move.end : last]
        changed = block + others if move.anchor < move.start else others + block
        self.source = text[:first] + changed + text[last:]
        turned, behind = self.source[::-1], len(text) - last
        self.heads = _columns(self.target, self.source, self.heads[: first + 1])
        self.tails = _columns(self.turned, turned, self.tails[: behind + 1])

    def _moves(self, alignment: Alignment) -> Iterator[Move]:
        """Each block with the places it may go: after what precedes it, or before what follows."""
        for block in self.blocks.best_first(self.source, alignment):
            ends = {alignment.anchors[block.goal], alignment.anchors[block.goal + block.length]}
            for anchor in sorted(ends):
                if not block.start <= anchor <= block.start + block.length:
                    yield Move(block.start, block.start + block.length, anchor)

    def _distances(self, moves: list[Move]) -> list[int]:
        """Of the texts after each move."""
        if not moves:
            return []
        text, size = self.source, len(self.source)
        forward = [move for move in moves if move.anchor > move.start]
        back = [move.turned(size) for move in moves if move.anchor < move.start]
        last = _moved(self.target, text, self.heads, forward)
        first = _moved(self.turned, text[::-1], self.tails, back)
        heads = [last.get(move) or self.heads[move.anchor] for move in moves]
        tails = [first.get(m.turned(size)) or self.tails[size - m.anchor] for m in moves]
        return least_sums(heads, tails, size, len(self.target.text))


def _moved(
    target: Target, text: str, columns: list[Column], moves: list[Move]
) -> dict[Move, Column]:
    """The column after each block that moved towards the end, behind what it passed.

    Blocks that come from the same place pass the same symbols: their columns are computed as one.
    """
    found: dict[Move, Column] = {}
    for group in _neighbours(moves):
        blocks = sorted({(move.start, move.end) for move in group})
        place = max(end for _, end in blocks)
        lanes = target.lanes(len(blocks))
        each = [target.after(columns[start], text[end:place]) for start, end in blocks]
        column = lanes.joined(each)
        for anchor in sorted({move.anchor for move in group}):
            column, place = lanes.after(column, text[place:anchor]), anchor
            for move in group:
                if move.anchor == anchor:
                    lane = lanes.lane(column, blocks.index((move.start, move.end)))
                    found[move] = target.after(lane, text[move.start : move.end])
    return found


def _neighbours(moves: list[Move]) -> list[list[Move]]:
    """Groups of moves from places that are near, none of them to within the others' blocks."""
    groups: list[list[Move]] = []
    nearest = 0
    for move in sorted(moves, key=lambda move: move.end):
        if groups and move.end <= min(groups[-1][0].end + NEAR, nearest):
            groups[-1].append(move)
            nearest = min(nearest, move.anchor)
        else:
            groups.append([move])
            nearest = move.anchor
    return groups


def _columns(target: Target, text: str, known: list[Column]) -> list[Column]:
    """The known ones, and those after each of the symbols that follow."""
    target.after(known[-1], text[len(known) - 1 :], known)
    return known
