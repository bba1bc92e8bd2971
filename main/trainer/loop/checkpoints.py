"""A run's checkpoints: what is written into one, what a resume takes out of it, which are kept."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from main.errors import CheckpointError
from main.system.folders import write_directory
from main.system.processes import decide, gather_objects, this_process, together
from main.trainer.arguments import LoopOptions
from main.trainer.loop import saving
from main.trainer.loop.home import Home
from main.trainer.loop.identity import around, differences
from main.trainer.loop.opening import Opened
from main.trainer.loop.optimizer import resume_schedule
from main.trainer.loop.state import RunState
from main.trainer.loop.task import Task

log = logging.getLogger(__name__)


class Checkpoints:
    """Saves a run and takes it up again.

    latest: the directory that holds the weights as they are, if there is one.
    identity: what the run is, see main/trainer/loop/identity.py.
    written: the directory written since it was last asked for, for the epoch's result.
    """

    def __init__(
        self,
        task: Task,
        options: LoopOptions,
        home: Home,
        opened: Opened,
        state: RunState,
        identity: dict[str, Any],
    ):
        self.task, self.options, self.home = task, options, home
        self.opened, self.state, self.identity = opened, state, identity
        self.around = around(task)
        self.written: Path | None = None
        self._latest: tuple[int, Path] | None = None

    @property
    def latest(self) -> Path | None:
        step, path = self._latest or (None, None)
        return path if step == self.state.step else None

    def save(self) -> None:
        """Write a checkpoint of this step. All processes must call it."""
        final = self.home.checkpoint(self.state.step)
        randoms = gather_objects(saving.random_state())
        optimizer = self.opened.placement.state()
        with self.opened.placement.whole():
            decide(lambda: self._write_all(final, randoms, optimizer))
        self.written, self._latest = final, (self.state.step, final)

    def amend(self) -> None:
        """Tell the checkpoint of this step, if there is one, what was found out since."""
        if self.latest is not None:
            latest = self.latest
            decide(lambda: saving.write_progress(latest, self._progress()))

    def rotate(self) -> None:
        """Delete the oldest beyond `save_total_limit`, never the best one."""
        decide(
            lambda: saving.rotate(
                self.home,
                self.state.run_id,
                self.options.save_total_limit,
                self.state.best_checkpoint,
                tuple(self.task.companions),
            )
        )

    def _write_all(self, final: Path, randoms: list[dict[str, Any]], optimizer: list) -> None:
        # Companions before the checkpoint itself, which then never stands without them.
        for name, write in self.task.companions.items():
            write_directory(self.home.checkpoints / f"{name}_{self.state.step}", write)
        write_directory(final, lambda folder: self._write(folder, randoms, optimizer))

    def _write(self, folder: Path, randoms: list[dict[str, Any]], optimizer: list) -> None:
        self.task.save(folder)
        weights = {n: p.detach().cpu() for n, p in self.opened.placement.by_name().items()}
        saving.save_tensors(folder, "weights.pt", weights)
        steps = {"optimizer": optimizer, "schedule": self.opened.schedule.state_dict()}
        saving.save_tensors(folder, "optimizer.pt", steps)
        saving.save_tensors(folder, "task.pt", self.task.tensors())
        for rank, state in enumerate(randoms):
            saving.save_tensors(folder, f"rng_{rank}.pt", state)
        saving.write_progress(folder, self._progress())

    def _progress(self) -> dict[str, Any]:
        return self.state.as_json() | {
            "processes": self.opened.processes,
            "total_steps": self.opened.length.total_steps,
            "identity": self.identity,
            "around": self.around,
            "task": self.task.state(),
        }

    # -- resume

    def resume(self, snapshot: saving.Snapshot) -> None:
        """Go on from there; the run is known to be the same. All processes must call it."""
        directory, progress = snapshot.directory, snapshot.progress
        vars(self.state).update(vars(RunState.from_json(progress, directory)))
        self._load_weights(snapshot.weights)
        self._load_optimizer(snapshot.optimizer)
        self._tell_changes(directory, progress)
        self._latest = (self.state.step, directory)
        if snapshot.random_state is not None:
            saving.set_random_state(snapshot.random_state)
        else:
            log.warning(
                "%s was written by %d processes and goes on with %d: the same rows and steps; "
                "dropout draws other numbers.",
                *(directory, progress["processes"], self.opened.processes),
            )

    def load_best(self) -> None:
        """The weights of the best checkpoint; says which. All processes must call it."""
        name = self.state.best_checkpoint
        if name is None:
            log.warning("load_best_model_at_end: no checkpoint's weights were evaluated.")
            return
        self._load_weights(saving.load_tensors(self.home.checkpoints / name, "weights.pt"))
        log.warning(
            "load_best_model_at_end: the model has the weights of %s, %s=%.6g.",
            *(name, self.options.best_metric, self.state.best_saved),
        )

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        """Its state; rates and weight decay are those of this call."""
        optimizer = self.opened.placement.torch_optimizer
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        self.opened.placement.load_state(saved["optimizer"])
        for group, decay in zip(optimizer.param_groups, decays, strict=True):
            group["weight_decay"] = decay
        resume_schedule(self.opened.schedule, saved["schedule"])

    def _tell_changes(self, directory: Path, progress: dict[str, Any]) -> None:
        if not this_process().is_main:
            return
        then, now = progress["total_steps"], self.opened.length.total_steps
        if then != now:
            log.warning(
                "%s is of a run of %d steps, and this one has %d: the learning rate goes on by the "
                "schedule of %d.",
                *(directory, then, now, now),
            )
        others = differences(progress["around"], self.around)
        if others:
            log.warning("%s: %s.", directory, "; ".join(others.values()))

    def _load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        with torch.no_grad(), self.opened.placement.whole(write=True):
            for name, parameter in self.opened.placement.by_name().items():
                parameter.copy_(weights[name])


def find(options: LoopOptions, home: Home, companions: Collection[str]) -> saving.Snapshot | None:
    """What `resume_from_checkpoint` asks for; None to start afresh. All processes must call it.

    'auto' takes the newest checkpoint that is whole, and says which it passed over.

    Raises:
        CheckpointError: the named directory is no checkpoint, or damaged.
    """
    wanted = options.resume_from_checkpoint
    if wanted is None:
        return None
    if wanted != "auto":
        directory = saving.named(wanted, home)
        return together(lambda: _read(directory))
    decide(lambda: saving.recover(home.checkpoints, [home.family, *companions]))
    for directory in decide(lambda: saving.candidates(home)):
        snapshot, error = _attempt(directory)
        told = next((text for text in gather_objects(error) if text), None)
        if told is None:
            return snapshot
        if this_process().is_main:
            log.warning("%s is passed over: %s", directory, told)
    log.warning("no checkpoint below %s: starting afresh.", home.checkpoints)
    return None


def _read(directory: Path) -> saving.Snapshot:
    here = this_process()
    return saving.read_snapshot(directory, here.rank, here.size)


def _attempt(directory: Path) -> tuple[saving.Snapshot | None, str]:
    try:
        return _read(directory), ""
    except CheckpointError as error:
        return None, str(error)
