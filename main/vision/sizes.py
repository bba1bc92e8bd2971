"""How large an image becomes: a multiple of the model's grid, within bounds of pixels."""

import math

from main.errors import DataError

LONGEST = 200  # times as long as wide, at most


def fit_pixels(
    height: int, width: int, factor: int, min_pixels: float, max_pixels: float
) -> tuple[int, int]:
    """The (height, width) of Qwen2-VL's dynamic resolution (arXiv 2409.12191, section 2.1).

    Both are multiples of `factor`, their product lies within the bounds, and the aspect ratio is
    kept as far as the grid allows.

    >>> fit_pixels(1000, 500, 28, 3136, 100352)
    (420, 196)
    """
    if max(height, width) > LONGEST * min(height, width):
        raise DataError(
            f"an image of {width} x {height} pixels is too long and thin: one side may be at most "
            f"{LONGEST} times the other."
        )
    fitted = (round(height / factor) * factor, round(width / factor) * factor)
    area = fitted[0] * fitted[1]
    # Divided in the order of the published processors, so that no rounding differs from theirs.
    if area > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        fitted = (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        fitted = (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return fitted


def on_grid(height: int, width: int, factor: int) -> tuple[int, int]:
    """The nearest multiples of `factor`, at least one each."""
    return (
        max(factor, round(height / factor) * factor),
        max(factor, round(width / factor) * factor),
    )
