"""Crash-safe checkpoints: a directory stands under its name only when it is complete.

`<root>/<Family>_<step>/` holds what the trainer writes (adapter, tokenizer) and `trainer_state/`:

    progress.json      where the run was, its metrics so far, its run id
    optimizer.pt       optimizer, schedule and loss scaler
    rng_<rank>.pt      random states of each process
"""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from main.errors import CheckpointError
from main.utils.folders import hidden, remove

STATE = "trainer_state"
PROGRESS = "progress.json"


def recover(root: Path) -> None:
    """Finish what a crash interrupted: put a set-aside directory back, drop unfinished ones."""
    for aside in root.glob(".*.old"):
        final = root / aside.name[1 : -len(".old")]
        if final.exists():
            remove(aside)
        else:
            aside.rename(final)
    for temporary in root.glob(".*.tmp"):
        remove(temporary)


def complete(root: Path) -> list[Path]:
    """Checkpoints below `root` that a run can resume from, oldest first."""
    found = [path.parent.parent for path in root.glob(f"[!.]*/{STATE}/{PROGRESS}")]
    return sorted(found, key=lambda path: read_progress(path)["saved_at"])


def find(resume_from: str | Path, root: Path) -> Path | None:
    """The checkpoint to resume from; None when 'auto' finds nothing.

    Raises:
        CheckpointError: the named directory is not a complete checkpoint.
    """
    if resume_from == "auto":
        recover(root)
        found = complete(root)
        return found[-1] if found else None
    path = Path(resume_from)
    if not (path / STATE / PROGRESS).is_file():
        raise CheckpointError(
            f"resume_from_checkpoint={str(path)!r} holds no {STATE}/{PROGRESS}, so it is not a "
            "checkpoint that a run can continue from. Use 'auto', a directory below "
            f"{root}, or resume_path to start from an adapter's weights."
        )
    return path


def rotate(
    root: Path,
    run_id: str,
    keep: int | None,
    best: Path | None,
    companions: tuple[str, ...] = (),
) -> None:
    """Delete this run's oldest checkpoints beyond `keep`, never the best one.

    companions: names of directories `<name>_<step>` that go with the checkpoint of that step.

    Raises:
        CheckpointError: one cannot be deleted; the newest stands all the same.
    """
    if keep is None:
        return
    mine = [path for path in complete(root) if read_progress(path)["run_id"] == run_id]
    for path in mine[:-keep]:
        if path == best:
            continue
        step = path.name.rpartition("_")[2]
        try:
            for doomed in (path, *(root / f"{name}_{step}" for name in companions)):
                _delete(doomed)
        except OSError as error:
            raise CheckpointError(
                f"{path} is one too many, but could not be deleted: {error}."
            ) from error


def read_progress(directory: Path) -> dict[str, Any]:
    """Raises CheckpointError when the file is not readable as JSON."""
    path = directory / STATE / PROGRESS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def write_progress(directory: Path, progress: dict[str, Any]) -> None:
    folder = directory / STATE
    folder.mkdir(exist_ok=True)
    text = json.dumps(progress, ensure_ascii=False, indent=1, default=str)
    (folder / PROGRESS).write_text(text, encoding="utf-8")


def save_tensors(directory: Path, name: str, state: Any) -> None:
    folder = directory / STATE
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)


def load_tensors(directory: Path, name: str) -> Any:
    """Read what `save_tensors` wrote: tensors and plain values, no code.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = directory / STATE / name
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: the run cannot go on from there. Resume from another checkpoint, "
            "or start anew from its weights with resume_path."
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).partition("\n")[0]
        raise CheckpointError(f"{path} cannot be read: {first}") from error


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
    if path.exists():
        doomed = hidden(path, "tmp")
        path.rename(doomed)  # incomplete from here on, whatever interrupts the deletion
        remove(doomed)
