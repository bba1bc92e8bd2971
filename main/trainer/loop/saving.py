"""Crash-safe checkpoints: a directory stands under its name only when it is complete.

`<root>/<Family>_<step>/` holds what the trainer writes (adapter, tokenizer) and `trainer_state/`:

    progress.json      where the run was, its metrics so far, its number and id
    weights.pt         what is trained, in full precision
    optimizer.pt       optimizer, schedule and loss scaler
    task.pt            what else a method keeps, such as its reference
    rng_<rank>.pt      random states of each process
"""

import contextlib
import json
import math
import random
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from main.errors import CheckpointError
from main.system.disk import appearing, told
from main.system.folders import hidden, remove
from main.system.pickles import Unreadable, load_plain
from main.trainer.loop.home import PROGRESS, STATE, Home


class Snapshot(NamedTuple):
    """What a resume needs, read as a whole before anything is changed.

    tensors: of the task.
    random_state: of this process; None where another number of processes wrote the checkpoint.
    """

    directory: Path
    progress: dict[str, Any]
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    random_state: dict[str, Any] | None


def recover(root: Path, names: Collection[str]) -> None:
    """Finish what a crash interrupted in the directories `<name>_<step>`, and in no others.

    A directory that was set aside is put back, unfinished ones are dropped.

    Raises:
        DiskError: it cannot be.
    """
    for name in names:
        with told(root / f"{name}_", "tidied up"):
            _recover(root, name)


def _recover(root: Path, name: str) -> None:
    for aside in _ours(root, f".{name}_", ".old"):
        final = root / aside.name[1 : -len(".old")]
        if final.exists():
            remove(aside)
        else:
            aside.rename(final)
    for temporary in _ours(root, f".{name}_", ".tmp"):
        remove(temporary)


def _ours(root: Path, before: str, after: str = "") -> list[Path]:
    """Directories whose name is a number between the two, the highest first; no links."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        number = path.name.removeprefix(before).removesuffix(after)
        named = path.name == f"{before}{number}{after}" and number.isdecimal()
        if named and path.is_dir() and not path.is_symlink():
            found.append((int(number), path))
    return [path for _, path in sorted(found, reverse=True)]


def candidates(home: Home) -> list[Path]:
    """What 'auto' may go on from: the latest run's checkpoints, then earlier ones', newest first.

    Those whose progress cannot be read come first, so that it is said that they are passed over. A
    checkpoint under the name of another step is a copy that somebody made, and none.
    """
    order = []
    for path in _ours(home.checkpoints, f"{home.family}_"):
        try:
            progress = read_progress(path)
        except CheckpointError:
            order.append(((math.inf, math.inf), path))
            continue
        if path == home.checkpoint(progress["step"]):
            order.append(((progress["number"], progress["step"]), path))
    return [path for _, path in sorted(order, key=lambda entry: entry[0], reverse=True)]


def next_number(home: Home) -> int:
    """For a new run: higher than that of every run whose checkpoints lie there."""
    numbers = [0]
    for path in _ours(home.checkpoints, f"{home.family}_"):
        with contextlib.suppress(CheckpointError):
            numbers.append(read_progress(path)["number"])
    return max(numbers) + 1


def named(resume_from: str | Path, home: Home) -> Path:
    """The directory that the caller named.

    Raises:
        CheckpointError: it is not a complete checkpoint.
    """
    path = Path(resume_from)
    if not (path / STATE / PROGRESS).is_file():
        raise CheckpointError(
            f"resume_from_checkpoint={str(path)!r} holds no {STATE}/{PROGRESS}, so it is not a "
            "checkpoint that a run can continue from. Use 'auto', a directory below "
            f"{home.checkpoints}, or resume_path to start from an adapter's weights."
        )
    return path


def read_snapshot(directory: Path, rank: int, processes: int) -> Snapshot:
    """All that process `rank` of `processes` goes on with.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    progress = read_progress(directory)
    same = progress.get("processes") == processes
    return Snapshot(
        directory,
        progress,
        load_tensors(directory, "weights.pt"),
        load_tensors(directory, "optimizer.pt"),
        load_tensors(directory, "task.pt"),
        load_tensors(directory, f"rng_{rank}.pt") if same else None,
    )


def rotate(
    home: Home,
    run_id: str,
    keep: int | None,
    best: str | None,
    companions: tuple[str, ...] = (),
) -> None:
    """Delete this run's checkpoints of the lowest steps beyond `keep`, never the best one.

    best: its name.
    companions: names of directories `<name>_<step>` that go with the checkpoint of that step.

    Raises:
        DiskError: one cannot be deleted; the newest stands all the same.
    """
    if keep is None:
        return
    mine = [path for path in candidates(home) if _run_of(path) == run_id]
    for path in mine[keep:]:
        if path.name == best:
            continue
        step = path.name.rpartition("_")[2]
        for doomed in (path, *(path.with_name(f"{name}_{step}") for name in companions)):
            with told(doomed, "deleted"):
                _delete(doomed)


def _run_of(path: Path) -> str | None:
    try:
        return read_progress(path).get("run_id")
    except CheckpointError:
        return None


def read_progress(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is not readable, or not what `write_progress` wrote."""
    path = directory / STATE / PROGRESS
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    whole = isinstance(progress, dict) and all(
        isinstance(progress.get(name), kind) for name, kind in _KINDS.items()
    )
    if not whole:
        raise CheckpointError(
            f"{path} does not hold {', '.join(_KINDS)}: it is damaged, or another version of this "
            "library wrote it. Start anew from its weights with resume_path."
        )
    return progress


_KINDS = {"step": int, "number": int, "run_id": str, "identity": dict, "task": dict}


def write_progress(directory: Path, progress: dict[str, Any]) -> None:
    """Write the file, or put a new one in its place.

    Raises:
        DiskError: the disk is full or not writable; the old one stands.
    """
    folder = directory / STATE
    text = json.dumps(progress, ensure_ascii=False, indent=1, default=str)
    with told(folder / PROGRESS):
        folder.mkdir(exist_ok=True)
        with appearing(folder / PROGRESS) as temporary:
            temporary.write_text(text, encoding="utf-8")


def save_tensors(directory: Path, name: str, state: Any) -> None:
    folder = directory / STATE
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)


def load_tensors(directory: Path, name: str) -> Any:
    """Read what `save_tensors` wrote: tensors and plain values, no code.

    Raises:
        CheckpointError: the file is missing or damaged, or would run code.
    """
    path = directory / STATE / name
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the run cannot go on from there. Resume from another checkpoint, "
            "or start anew from its weights with resume_path."
        )
    try:
        return load_plain(path)
    except Unreadable as error:
        raise CheckpointError(f"{path} cannot be read: it {error}.") from error


def random_state() -> dict[str, Any]:
    """The state of every generator that training draws from."""
    state: Any = np.random.get_state()
    kind, keys, position, has_gauss, gauss = state
    return {
        "python": json.dumps(random.getstate()),
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss_next = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        doomed = hidden(path, "tmp")
        path.rename(doomed)  # incomplete from here on, whatever interrupts the deletion
        remove(doomed)
