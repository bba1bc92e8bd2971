"""Edit distance with block shifts, what TER counts (Snover et al. 2006, "A Study of Translation
Edit Rate with Targeted Human Annotation", section 3).
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from main.evaluation.blocks import Alignment, Blocks, align
from main.evaluation.columns import Target, last_cell

# The search is greedy, as in TERCOM and sacreBLEU, and bounded like theirs. For one pair of texts:
MAX_CANDIDATES = 1000  # shifted texts tried in all, the most promising ones first
MAX_COLUMNS = 200_000  # columns from a text's first change to its end, in all; see `Budget`
MAX_TRIES = 30  # shifted texts tried for one shift


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

    def made(self, text: str) -> str:
        """The text with its block moved."""
        first, last = self.changed
        block = text[self.start : self.end]
        others = text[first : self.start] + text[self.end : last]
        changed = block + others if self.anchor < self.start else others + block
        return text[:first] + changed + text[last:]


def edit_distance(source: Sequence[str], target: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions of one symbol (Levenshtein)."""
    return Levenshtein.distance(*_as_texts(source, target))


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
    """The source as it is after the moves so far; heads[i]: its column after i symbols."""

    def __init__(self, source: str, target: str):
        self.source, self.budget, self.blocks = source, Budget(), Blocks(target)
        self.target = Target(target)
        self.heads = self.target.columns(source, [self.target.first_column()])

    @property
    def distance(self) -> int:
        return last_cell(len(self.source), self.heads[-1])

    def best_move(self) -> Move | None:
        """The most useful one, or None when none lowers the distance."""
        alignment = align(self.source, self.target.text, self.heads)
        distance, size = self.distance, len(self.source)
        most = distance - abs(size - len(self.target.text))  # no distance is below that of lengths
        best, best_saving = None, 0
        for move in islice(self._moves(alignment), MAX_TRIES) if distance else ():
            if best_saving >= most:
                break
            # A block of L symbols that moves saves at most L deletions and L insertions.
            if 2 * (move.end - move.start) <= best_saving:
                continue
            if not self.budget.spend(size - move.changed[0]):
                break
            useful = distance - best_saving - 1
            shifted = Levenshtein.distance(
                move.made(self.source), self.target.text, score_cutoff=useful
            )
            if shifted <= useful:
                best, best_saving = move, distance - shifted
        return best

    def make(self, move: Move) -> None:
        """Move the block; heads before the change stay."""
        self.source = move.made(self.source)
        self.heads = self.target.columns(self.source, self.heads[: move.changed[0] + 1])

    def _moves(self, alignment: Alignment) -> Iterator[Move]:
        """Each block with the places it may go: after what precedes it, or before what follows."""
        for block in self.blocks.best_first(self.source, alignment):
            ends = {alignment.anchors[block.goal], alignment.anchors[block.goal + block.length]}
            for anchor in sorted(ends):
                if not block.start <= anchor <= block.start + block.length:
                    yield Move(block.start, block.start + block.length, anchor)
