"""`loader_name="auto"`: which rows these are, by their first one, and what reads them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from main.errors import DataError
from main.loaders.shapes import SHAPES, Shape, shape_of
from main.loaders.sources import Part, Source

logger = logging.getLogger("main.loaders")


def recognise(
    sources: Mapping[str, Source], loaders: Sequence[str], who: str
) -> tuple[str, dict[str, Source]]:
    """The loader that reads all of these, and the sources as it is given them.

    Every file, list and data set may have rows of a shape of its own, as long as one loader reads
    all of them. What was taken for what is told, a line each.

    Args:
        sources: by split, as `resolve` returned them.
        loaders: that the caller takes, the preferred ones first.
        who: the caller, for messages.

    Raises:
        DataError: rows of no shape that is known, or of one that the caller does not take.
    """
    parts = [part for source in sources.values() for part in source.parts]
    shapes = {part.name: _shape(part, loaders, who) for part in parts}
    found = [shape for shape in shapes.values() if shape]
    fitting = [n for n in loaders if all(n in shape.loaders for shape in found)]
    if not fitting:
        told = "; ".join(f"{name}: {shape.name}" for name, shape in shapes.items() if shape)
        raise DataError(f"no loader of {who} reads all of these rows: {told}.")
    loader = fitting[0]
    for name, shape in shapes.items():
        if shape:
            logger.warning("%s: rows of %s, read with loader_name='%s'", name, shape.name, loader)
    return loader, {
        split: replace(
            source,
            parts=tuple(p.shaped(s, loader) if (s := shapes[p.name]) else p for p in source.parts),
        )
        for split, source in sources.items()
    }


def _shape(part: Part, loaders: Sequence[str], who: str) -> Shape | None:
    """None where no row can be read, which whoever reads the rows will tell."""
    first = part.first()
    if first is None:
        return None
    number, row = first
    shape = shape_of(row)
    where = f"{part.name} {part.word} {number}"
    if shape is None:
        raise DataError(
            f"{where}: loader_name='auto' knows no rows with the fields {sorted(row)}. It knows "
            f"{', '.join(shape.name for shape in SHAPES)}."
        )
    if not set(shape.loaders) & set(loaders):
        raise DataError(
            f"{where}: rows of {shape.name} are not what {who} trains on; it takes "
            f"{', '.join(dict.fromkeys(s.name for s in SHAPES if set(s.loaders) & set(loaders)))}."
        )
    return shape
