"""What encoded rows are: a digest of their content, whatever file they came from or lie in."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from main.vision import media

if TYPE_CHECKING:
    import datasets
    import pyarrow

_ROWS = 1000  # read at once
_ENDS = 4096  # bytes at either end of a file that stand for it, with its size


def rows_digest(dataset: "datasets.Dataset") -> str:
    """Of every value of every row, in order; of an image or video the file's content counts.

    How the rows were cut into batches and in which integers they are kept does not.
    """
    columns: dict[str, list[Any]] = {name: [] for name in sorted(dataset.column_names)}
    for table in dataset.with_format("arrow").iter(batch_size=_ROWS):
        for name, levels in columns.items():
            for chunk in table.column(name).chunks:
                _add(levels, 0, chunk, name == "images")
    digest = hashlib.sha256()
    for name, levels in columns.items():
        digest.update(name.encode() + b"".join(level.digest() for level in levels))
    return digest.hexdigest()


def _add(levels: list[Any], depth: int, array: "pyarrow.Array", media_paths: bool) -> None:
    """One digest for each depth of nesting: lengths of the lists, then what is in them."""
    import pyarrow

    while len(levels) <= depth:
        levels.append(hashlib.sha256())
    kind = array.type
    if pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind):
        levels[depth].update(_bytes(pyarrow.compute.list_value_length(array)))
        _add(levels, depth + 1, array.flatten(), media_paths)
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        texts = [text or "" for text in array.to_pylist()]
        texts = [_images(text) for text in texts] if media_paths else texts
        levels[depth].update("".join(json.dumps(text) + "," for text in texts).encode())
    else:
        levels[depth].update(_bytes(array))


def _bytes(numbers: "pyarrow.Array") -> bytes:
    import pyarrow

    none = False if pyarrow.types.is_boolean(numbers.type) else 0
    found = numbers.fill_null(none).to_numpy(zero_copy_only=False)
    return found.astype(np.float64 if found.dtype.kind == "f" else np.int64).tobytes()


def _images(text: str) -> str:
    """What `media.dump` wrote, with the content of files in the place of their paths."""
    return json.dumps([dataclasses.asdict(_by_content(visual)) for visual in media.load(text)])


def _by_content(visual: media.Visual) -> media.Visual:
    source = visual.source
    if isinstance(source, tuple):
        return dataclasses.replace(visual, source=[_content(frame) for frame in source])
    return dataclasses.replace(visual, source=_content(source))


def _content(source: str) -> str:
    """Of a file its size and its ends; other sources as they are."""
    path = Path(source)
    if source.startswith("data:") or not path.is_file():
        return source
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        return f"{size} {hashlib.sha256(first + file.read()).hexdigest()}"
