"""Numbers of a chart: ticks, positions, paths, fewer points, smoothing. Pure functions."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

Point = tuple[float, float]
BUCKETS = 240  # of a long curve: each keeps its lowest and its highest point
_STEPS = (1, 2, 5, 10)
_TINY, _ALIKE = 1e-300, 1e-9  # smaller is 0; values that differ by less of their size are one


class Scale(NamedTuple):
    """From values to pixels, linear.

    low, high: values; start, end: the pixels at which they lie.
    """

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of a value.

        >>> Scale(0, 10, 100, 0).at(2.5)
        75.0
        """
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers, 1, 2 or 5 times a power of ten apart, that enclose the values.

    >>> ticks(0.13, 0.88), ticks(1, 100), ticks(3, 3), ticks(0, 0)
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [0.0, 50.0, 100.0], [2.0, 3.0, 4.0], [0.0, 0.5, 1.0])
    """
    size = max(abs(low), abs(high))
    if size < _TINY:
        return [0.0, 0.5, 1.0]
    if high - low <= _ALIKE * size:
        return ticks(high - size / 3, high + size / 3, 2)
    step = _round_step((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def step_ticks(first: float, last: float, count: int = 4) -> list[float]:
    """Round whole numbers from the first step to the last.

    >>> step_ticks(1, 60), step_ticks(1, 3)
    ([20.0, 40.0, 60.0], [1.0, 2.0, 3.0])
    """
    return [t for t in ticks(first, last, count) if first <= t <= last and t == int(t)]


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return power * next(step for step in _STEPS if step * power >= width * (1 - 1e-9))


def digits(low: float, high: float) -> int:
    """How many digits tell values between these apart: 4, or more where all of them are alike.

    >>> digits(0, 5), digits(10.7898, 10.7899), digits(3, 3)
    (4, 9, 4)
    """
    size = max(abs(low), abs(high))
    if size < _TINY or high - low <= _ALIKE * size:
        return 4
    return max(4, math.ceil(math.log10(size / (high - low))) + 3)


def number(value: float, exact: int = 4) -> str:
    """A value in so many digits, as somebody would write it.

    >>> [number(v) for v in (0, 0.00025, 1 / 3, 1234.56, 20_000, 3.2e6, 1e-7, 2.0, 1e-17)]
    ['0', '0.00025', '0.3333', '1,235', '20k', '3.2M', '1e-07', '2', '0']
    >>> number(10.789884241, 8), number(20_000.123, 8)
    ('10.789884', '20,000.123')
    """
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size < 1e-12:
        return "0"
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if exact <= 4 and size >= max(unit, 1e4) * (1 - 5e-5):
            return f"{value / unit:.4g}{name}"
    whole = size >= 999.95 and exact <= 4
    return f"{value:,.0f}" if whole else f"{value:,.{exact}g}"


def percent(value: float, exact: int = 4) -> str:
    """A share in percent, in one digit less.

    >>> percent(0.4137), percent(1), percent(0.0022), percent(0.999954, 7)
    ('41.4%', '100%', '0.22%', '99.9954%')
    """
    return f"{100 * value:.{exact - 1}g}%"


def path(points: Sequence[Point]) -> str:
    """The `d` of an SVG path through pixels; one point is a dot of the line's width.

    >>> path([(0, 1.26), (10, 2)]), path([(3, 4)])
    ('M0 1.3L10 2', 'M3 4h0')
    """
    drawn = "L".join(f"{_short(x)} {_short(y)}" for x, y in points)
    return f"M{drawn}{'h0' if len(points) == 1 else ''}" if points else ""


def _short(pixel: float) -> str:
    return f"{pixel:.1f}".removesuffix(".0")


def thinned(points: Sequence[Point], buckets: int = BUCKETS) -> list[Point]:
    """At most two points a bucket, its lowest and its highest, and both ends of the curve.

    >>> thinned([(0, 0), (1, 9), (2, 1), (3, 2), (4, -5), (5, 3)], 1)
    [(0, 0), (1, 9), (4, -5), (5, 3)]
    """
    if len(points) <= 2 * buckets:
        return list(points)
    kept = {0, len(points) - 1}
    for bucket in range(buckets):
        begin = bucket * len(points) // buckets
        part = range(begin, (bucket + 1) * len(points) // buckets)
        kept |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(kept)]


def smoothed(points: Sequence[Point]) -> list[Point]:
    """A mean around each point over a twentieth of the curve; at its ends over what there is of it.

    >>> smoothed([(0, 2), (1, 5), (2, 8), (3, 2)])
    [(0, 3.5), (1, 5.0), (2, 5.0), (3, 5.0)]
    """
    half = max(1, len(points) // 40)
    sums = [0.0, *accumulate(value for _, value in points)]
    found = []
    for i, (x, _) in enumerate(points):
        begin, end = max(0, i - half), min(len(points), i + half + 1)
        found.append((x, (sums[end] - sums[begin]) / (end - begin)))
    return found


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Labels moved apart to at least `gap`, in their order, within both bounds where they fit.

    >>> spread([50, 52, 90], 10, 0, 100), spread([98, 99], 10, 0, 100)
    ([50, 60, 90], [90, 100])
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [min(max(places[i], low), high) for i in order]
    _push(moved, gap, range(1, len(moved)), -1, max)
    if moved and moved[-1] > high:
        moved[-1] = high
        _push(moved, -gap, range(len(moved) - 2, -1, -1), 1, min)
    found = list(places)
    for i, place in zip(order, moved, strict=True):
        found[i] = place
    return found


def _push(
    moved: list[float], gap: float, order: range, neighbour: int, further: Callable[..., float]
) -> None:
    for i in order:
        moved[i] = further(moved[i], moved[i + neighbour] + gap)
