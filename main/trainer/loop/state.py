"""Where a run is; with weights, optimizer and random states all that a resume needs."""

import uuid
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from main.errors import CheckpointError
from main.trainer.loop.records import Means
from main.trainer.loop.watch import Memory


@dataclass
class RunState:
    """What changes while a run goes on, but for weights and optimizer.

    epoch, index: the epoch under way, and its draws already trained on.
    step, before: optimizer steps taken, and those before the latest draw.
    logged, evaluated, told: the steps at which that was done last; told = a result was given.
    evaluation: metrics of the latest evaluation.
    best, stale: the best metric so far, and the evaluations since.
    best_saved, best_checkpoint: the best metric among weights that were saved, and the folder.
    number, run_id: tell this run from others in the same folder; later runs have higher numbers.
    memory: what signs of trouble are seen against.
    epoch_means, window: of the epoch under way, and since the last record by steps.
    """

    epoch: int = 1
    index: int = 0
    step: int = 0
    before: int = 0
    logged: int = 0
    evaluated: int = 0
    told: int = 0
    evaluation: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    stale: int = 0
    best_saved: float | None = None
    best_checkpoint: str | None = None
    number: int = 1
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    memory: Memory = field(default_factory=Memory)
    epoch_means: Means = field(default_factory=Means)
    window: Means = field(default_factory=Means)

    def record(self, metrics: dict[str, tuple[Any, float]]) -> None:
        self.epoch_means.add(metrics)
        self.window.add(metrics)

    def as_json(self) -> dict[str, Any]:
        means = {name: getattr(self, name).state() for name in _MEANS}
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _MEANS}
        return plain | means | {"memory": asdict(self.memory)}

    @classmethod
    def from_json(cls, found: dict[str, Any], where: Path) -> "RunState":
        """Raises CheckpointError when something is missing, as in a file of another version.

        Or when it names a checkpoint elsewhere.
        """
        missing = [f.name for f in fields(cls) if f.name not in found]
        if missing:
            raise CheckpointError(
                f"{where} does not say {missing}: it is damaged, or another version of this "
                "library wrote it. Start anew from its weights with resume_path."
            )
        best = found["best_checkpoint"]
        if best is not None and (not isinstance(best, str) or Path(best).name != best):
            raise CheckpointError(
                f"{where} calls {best!r} its best checkpoint, which is no folder beside it: it is "
                "damaged. Start anew from its weights with resume_path."
            )
        values = {f.name: found[f.name] for f in fields(cls)}
        values["memory"] = Memory(**found["memory"])
        return cls(**values | {name: Means(found[name]) for name in _MEANS})


_MEANS = ("epoch_means", "window")
