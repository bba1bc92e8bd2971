"""Columns of the table of edit distances, each as two integers.

D[i, j] is the distance (Levenshtein) of the first i symbols of a source to the first j of a
target. Column i is kept as the differences down it, a bit for each j: bit j of `up` is set where
D[i, j + 1] is D[i, j] + 1, of `down` where it is D[i, j] - 1. So a symbol more costs a dozen
operations on whole columns (Hyyrö 2003, "A Bit-Vector Algorithm for Computing Levenshtein and
Damerau Edit Distances").
"""

Column = tuple[int, int]  # up, down


class Target:
    """The text to reach, with the positions of each of its symbols as a bit mask."""

    def __init__(self, text: str):
        self.text, self.full = text, (1 << len(text)) - 1
        self.masks: dict[str, int] = {}
        for position, symbol in enumerate(text):
            self.masks[symbol] = self.masks.get(symbol, 0) | 1 << position

    def first_column(self) -> Column:
        return self.full, 0

    def columns(self, text: str, known: list[Column]) -> list[Column]:
        """The known ones, of the beginning of a source, and those after each further symbol."""
        masks, full = self.masks, self.full
        up, down = known[-1]
        for symbol in text[len(known) - 1 :]:
            here = masks.get(symbol, 0)
            diagonal = (((here & up) + up) ^ up) | here | down
            same = ((diagonal | up) ^ down) << 1  # where the row does not grow
            both = diagonal & same
            up = ((diagonal & up) << 1 | (same ^ both)) & full
            down = (diagonal ^ both) & full
            known.append((up, down))
        return known


def last_cell(first: int, column: Column) -> int:
    """The column's last cell, given its first one."""
    up, down = column
    return first + up.bit_count() - down.bit_count()
