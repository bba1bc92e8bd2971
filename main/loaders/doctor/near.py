"""Texts that are nearly the same: MinHash (Broder, 1997) with banded buckets.

Two texts whose sets of 5-character pieces have the Jaccard similarity s share each of 64 minima
with probability s, and all 4 of one of the 16 bands with probability 1 - (1 - s^4)^16: 0.9998 at
0.8, 0.64 at 0.5. What shares a band is compared by the share of equal minima.
"""

import re
import unicodedata

import numpy as np

MINIMA, BANDS = 64, 16
NEAR = 0.85  # share of equal minima
PIECE = 5  # characters
SHORTEST = 40  # characters of a text that is compared

_GENERATOR = np.random.default_rng(20261201)
_FACTORS = _GENERATOR.integers(0, 1 << 63, (MINIMA, 1), dtype=np.uint64) * 2 + 1
_OFFSETS = _GENERATOR.integers(0, 1 << 63, (MINIMA, 1), dtype=np.uint64)
_BASE = np.uint64(0x9E3779B97F4A7C15)
_BLANKS = re.compile(r"\s+")


def normal(text: str) -> str:
    """Without what spelling alone adds: case, blanks, compatibility forms."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).strip()


def signature(text: str) -> np.ndarray:
    """The minima of a normal text's pieces, (MINIMA,) uint32."""
    letters = np.frombuffer(text.ljust(PIECE).encode("utf-32-le", "replace"), dtype="<u4")
    pieces = np.zeros(len(letters) - PIECE + 1, dtype=np.uint64)
    for i in range(PIECE):  # a polynomial, modulo 2^64
        pieces = pieces * _BASE + letters[i : i + len(pieces)]
    pieces ^= pieces >> np.uint64(31)
    mixed = (pieces * _FACTORS + _OFFSETS) >> np.uint64(32)
    return mixed.min(axis=1).astype(np.uint32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """An estimate of the Jaccard similarity of two texts' pieces; its deviation is about 0.05."""
    return float((a == b).mean())


class Neighbours:
    """Texts so far, by their bands."""

    def __init__(self) -> None:
        self._signatures: list[np.ndarray] = []
        self._buckets: dict[bytes, int] = {}

    def find(self, text: str) -> int | None:
        """The number, from 0, of an earlier text that this one is near to; it is kept besides."""
        mine = signature(text)
        number = len(self._signatures)
        self._signatures.append(mine)
        best: tuple[float, int] | None = None
        for band, part in enumerate(mine.reshape(BANDS, -1)):
            first = self._buckets.setdefault(bytes([band]) + part.tobytes(), number)
            if first != number:
                likeness = similarity(mine, self._signatures[first])
                best = max(best or (likeness, first), (likeness, first))
        return best[1] if best and best[0] >= NEAR else None
