"""What a model or an adapter is: a digest of its files' content, wherever they lie."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from main.models.adapter_files import CONFIG as ADAPTER_CONFIG
from main.models.training_record import INCIDENTAL
from main.system.settings import read_settings

CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt", "*.pth")
PIECE_BYTES = 64
PIECES, FILE_PIECES = 8, 4096  # of a tensor; of a file whose tensors are not looked up
MOST_HEADER = 100_000_000  # bytes, the format's own limit
# Of an adapter's configuration: where its base lay, and who wrote the file.
ELSEWHERE = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")


class Stretch(NamedTuple):
    """Bytes of a file of which so many pieces count: a tensor, by name and kind, or the file."""

    name: str
    path: Path
    start: int
    size: int
    pieces: int


def files_digest(path: str | os.PathLike[str]) -> str:
    """Of configuration and weights: of each tensor its kind and evenly spread pieces of its bytes.

    Of a name on the hub the files in the local cache count, or the name alone where there are none.
    """
    folder = _folder(path)
    if folder is None:
        return hashlib.sha256(str(path).encode()).hexdigest()
    digest = hashlib.sha256()
    for name in (CONFIG, ADAPTER_CONFIG):
        if (folder / name).is_file():
            digest.update(_configuration(folder / name).encode())
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern))
    for stretch in sorted(stretch for file in files for stretch in _stretches(file)):
        digest.update(stretch.name.encode() + _pieces(stretch))
    return digest.hexdigest()


def _folder(path: str | os.PathLike[str]) -> Path | None:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from transformers.utils import cached_file

    try:
        found = cached_file(str(path), CONFIG, local_files_only=True)
    except (OSError, ValueError):
        return None
    return Path(found).parent if found else None


def _configuration(path: Path) -> str:
    content = read_settings(path)
    left_out = {*INCIDENTAL, *ELSEWHERE}
    kept = {k: v for k, v in content.items() if k not in left_out and not k.startswith("_")}
    return json.dumps(kept, sort_keys=True)


def _stretches(path: Path) -> list[Stretch]:
    try:
        return list(_tensors(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not of this form
        return [Stretch(path.name, path, 0, path.stat().st_size, FILE_PIECES)]


def _tensors(path: Path) -> Iterator[Stretch]:
    """Those of a safetensors file, from its header: the header's length in 8 bytes, then JSON."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header: dict[str, Any] = json.loads(stream.read(min(length, MOST_HEADER)))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, end = entry["data_offsets"]
        kind = f"{name} {entry['dtype']} {entry['shape']}"
        yield Stretch(kind, path, 8 + length + first, end - first, PIECES)


def _pieces(stretch: Stretch) -> bytes:
    """The first and the last bytes, and pieces between them."""
    last = max(stretch.size - PIECE_BYTES, 0)
    found = [str(stretch.size).encode()]
    with stretch.path.open("rb") as stream:
        for number in range(stretch.pieces):
            stream.seek(stretch.start + last * number // (stretch.pieces - 1))
            found.append(stream.read(min(PIECE_BYTES, stretch.size)))
    return b"".join(found)
