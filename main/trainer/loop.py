"""The training loop of every method: steps, ranks, records, evaluation, checkpoints, resume.

    for epoch:
        for rows in plan:                       # one global draw of rows, whatever the processes
            for update in task.updates(rows):
                totals = counts of the whole step, over micro-batches and processes
                for batch in update.micro_batches:  backward(task.loss(batch, totals))
                clip, step, schedule
            log, evaluate, save when due
        yield EpochResult

It knows no algorithm: a method is a `Task` (main/trainer/task.py).
"""

import dataclasses
import logging
import math
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from main.errors import CheckpointError, ConfigError, TrainingError
from main.loaders.sampler import plan_epoch, shard
from main.trainer import checkpoint
from main.trainer.arguments import LoopOptions
from main.trainer.guards import StopSignal, is_out_of_memory
from main.trainer.launch import make_accelerator, make_engine
from main.trainer.records import Means, Progress, Records, mean_of
from main.trainer.task import Batch, MicroRows, Row, Task, to_device
from main.types import EpochResult
from main.utils.folders import write_directory
from main.utils.processes import decide, gather_objects, gather_shares, place, share, uses_deepspeed

log = logging.getLogger(__name__)


@dataclass
class Place:
    """Where a run writes and what fixes it: folders, checkpoint name, seed."""

    output_dir: Path
    task_name: str
    family: str
    seed: int

    @property
    def checkpoints(self) -> Path:
        return self.output_dir / "save_model" / self.task_name


@dataclass
class RunState:
    """Where a run is; with weights, optimizer and random states all that a resume needs."""

    epoch: int = 1  # the epoch under way
    index: int = 0  # draws of this epoch already trained on
    step: int = 0  # optimizer steps taken
    epoch_means: dict = field(default_factory=dict)
    log_means: dict = field(default_factory=dict)
    last_eval: dict = field(default_factory=dict)
    best: float | None = None
    best_checkpoint: str | None = None
    stale: int = 0  # evaluations since the best one
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class Loop:
    """One run of a task; `run()` is the generator that a trainer returns."""

    def __init__(self, task: Task, options: LoopOptions, place: Place):
        self.task, self.options, self.place = task, options, place
        self.state = RunState()
        self.epoch_means, self.log_means = Means(), Means()
        self.signal = StopSignal()
        self.saved: Path | None = None
        self.improved = False
        self._closers: list[Any] = []

    # -- the run, top to bottom

    def run(self) -> Iterator[EpochResult]:
        try:
            self._open()
            while self.state.epoch <= self.options.num_epochs and not self._stopped_early():
                self.signal.arm()
                result = self._epoch()
                self._stop_if_asked()
                self.signal.disarm()
                ours = checkpoint.random_state()
                yield result
                checkpoint.set_random_state(ours)  # what the caller drew does not matter
        finally:
            self._close()

    def _epoch(self) -> EpochResult:
        plan = self._plan(self.state.epoch)
        while self.state.index < len(plan):
            began = self.state.step
            self._train_on(plan[self.state.index])
            self.state.index += 1
            at_end = self.state.index == len(plan)
            self._progress.step(self.state.epoch, self._shown())
            self._when_due(began, len(plan), at_end)
            if not at_end:
                self._stop_if_asked()
        return self._finish_epoch()

    def _train_on(self, rows: list[int]) -> None:
        """Draw the step's rows for this rank and make the optimizer steps the task asks for."""
        began = time.perf_counter()
        tokens = 0
        for update in self.task.updates(self._draw(rows), self.state.step):
            tokens += self._update(update.micro_batches)
            self._record(update.metrics or {})
        seconds = time.perf_counter() - began
        self._record({"tokens_per_second": (tokens, seconds / self.world)})

    def _draw(self, rows: list[int]) -> list[MicroRows]:
        """This rank's share; a row with several samples counts once for each."""
        data, samples = self.task.train_data, self.task.samples_per_row
        numbers = [row * samples + sample for row in rows for sample in range(samples)]
        lengths = {number: data.lengths[number // samples] for number in numbers}
        pieces = shard(numbers, lengths, self.task.batch_size, self.rank, self.world)
        return [
            MicroRows(
                [{**data[n // samples], "sample": n % samples} for n in piece.rows], piece.counted
            )
            for piece in pieces
        ]

    def _update(self, micro_batches: list[MicroRows]) -> int:
        """One optimizer step; returns the real tokens that this rank computed."""
        while True:
            batches = [self.task.collate(micro.rows) for micro in micro_batches]
            totals = self._totals(micro_batches, batches)
            try:
                metrics = self._accumulate(micro_batches, batches, totals)
                break
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.engine.zero_grad()
                micro_batches = self._halve(micro_batches, error)
        self._step(micro_batches, metrics)
        counted = zip(micro_batches, batches, strict=True)
        return sum(batch.tokens for micro, batch in counted if micro.counted)

    def _accumulate(
        self, micro_batches: list[MicroRows], batches: list[Batch], totals: dict[str, float]
    ) -> Means:
        means = Means()
        for number, (micro, batch) in enumerate(zip(micro_batches, batches, strict=True), 1):
            last = number == len(batches)
            with self.engine.passing(last):
                output = self.task.loss(to_device(batch.tensors, self.accelerator.device), totals)
                # Gradients are averaged over ranks while `totals` already counts all of them.
                loss = output.loss * (self.world if micro.counted else 0.0)
                self.engine.backward(loss, last)
            if micro.counted:
                means.add(output.metrics)
        return means

    def _step(self, micro_batches: list[MicroRows], metrics: Means) -> None:
        norm = self.engine.clip(self.options.max_grad_norm or math.inf)
        if math.isfinite(norm) or self.options.fp16:
            if self.engine.step():
                self.schedule.step()
        else:
            self._not_finite(micro_batches, norm)
        self.engine.zero_grad()
        self.state.step += 1
        self.task.global_step = self.state.step
        self._record({"grad_norm": (norm, 1)} if math.isfinite(norm) else {})
        self._record(metrics.state())

    # -- when something is due

    def _when_due(self, began: int, draws: int, at_end: bool) -> None:
        options, step = self.options, self.state.step

        def due(strategy: str, every: int) -> bool:
            return strategy == "steps" and step // every > began // every

        if due(options.logging_strategy, options.logging_steps):
            self._log(self.state.epoch - 1 + self.state.index / draws)
        if at_end:
            return  # the epoch's end evaluates and saves once, with the state behind it
        if due(options.eval_strategy, options.eval_steps):
            self._evaluate()
        if due(options.save_strategy, options.save_steps):
            self._save()

    def _finish_epoch(self) -> EpochResult:
        options, epoch, step = self.options, self.state.epoch, self.state.step
        train = self._gathered(self.epoch_means) | {"lr": self._lr()}
        if options.logging_strategy == "epoch":
            self.records.write("train", step, epoch, train)
        if options.eval_strategy == "epoch" or (
            options.eval_strategy == "steps" and step % options.eval_steps == 0
        ):
            self._evaluate()
        text = self.task.sample_text()
        if text:
            self.records.text("samples", text, step, epoch)
        evaluation, self.state.last_eval = self.state.last_eval, {}
        self.state.epoch, self.state.index = epoch + 1, 0
        self.epoch_means = Means()
        if options.save_strategy == "epoch" or (
            options.save_strategy == "steps" and step % options.save_steps == 0
        ):
            self._save()
        saved, self.saved = self.saved, None
        return EpochResult(epoch, train, evaluation, saved, step)

    def _log(self, epoch: float) -> None:
        metrics = self._gathered(self.log_means) | {"lr": self._lr()}
        self.log_means = Means()
        self.records.write("train", self.state.step, epoch, metrics)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Every evaluation row once, whatever the number of ranks; leaves random states alone."""
        data = self.task.eval_data
        if data is None:
            return
        ours = checkpoint.random_state()
        self.task.model.eval()
        means = Means()
        size = self.task.batch_size_eval
        for piece in shard(range(len(data)), data.lengths, size, self.rank, self.world):
            rows: list[Row] = [{**data[i], "sample": 0} for i in piece.rows]
            metrics = self.task.evaluate(rows, self.accelerator.device)
            if piece.counted:
                means.add(metrics)
        self.task.model.train()
        checkpoint.set_random_state(ours)
        self.state.last_eval = self._gathered(means)
        self.records.write("eval", self.state.step, self.state.epoch, self.state.last_eval)
        self._compare_with_best(self.state.last_eval)

    def _compare_with_best(self, evaluation: dict[str, float]) -> None:
        name = self.options.metric_for_best_model
        if name not in evaluation:
            raise ConfigError(
                f"metric_for_best_model={name!r} is not evaluated; there are {sorted(evaluation)}."
            )
        value, best = evaluation[name], self.state.best
        sign = 1 if self.options.greater_is_better else -1
        self.improved = best is None or sign * value > sign * best
        self.state.stale = 0 if self.improved else self.state.stale + 1
        if self.improved:
            self.state.best = value

    def _stopped_early(self) -> bool:
        patience = self.options.early_stopping_patience
        return patience is not None and self.state.stale >= patience

    # -- checkpoints

    def _save(self) -> None:
        final = self.place.checkpoints / f"{self.place.family}_{self.state.step}"
        if self.improved:
            self.state.best_checkpoint, self.improved = str(final), False
        randoms = gather_objects(checkpoint.random_state())
        optimizer = self.engine.state()
        with self.engine.whole():
            decide(lambda: self._write_all(final, randoms, optimizer))
        self.saved = final

    def _write_all(self, final: Path, randoms: list[dict[str, Any]], optimizer: list) -> None:
        self._write_companions()
        write_directory(final, lambda folder: self._write(folder, randoms, optimizer))
        best = self.state.best_checkpoint
        checkpoint.rotate(
            self.place.checkpoints,
            self.state.run_id,
            self.options.save_total_limit,
            Path(best) if best else None,
            tuple(self.task.companions),
        )

    def _write_companions(self) -> None:
        """Before the checkpoint itself, which then never stands without them."""
        for name, write in self.task.companions.items():
            folder = self.place.checkpoints / f"{name}_{self.state.step}"
            write_directory(folder, write)

    def _write(self, folder: Path, randoms: list[dict[str, Any]], optimizer: list) -> None:
        self.task.save(folder)
        weights = {name: p.detach().cpu() for name, p in self.engine.by_name().items()}
        checkpoint.save_tensors(folder, "weights.pt", weights)
        checkpoint.save_tensors(
            folder,
            "optimizer.pt",
            {"optimizer": optimizer, "schedule": self.schedule.state_dict()},
        )
        for rank, state in enumerate(randoms):
            checkpoint.save_tensors(folder, f"rng_{rank}.pt", state)
        self.state.epoch_means = self.epoch_means.state()
        self.state.log_means = self.log_means.state()
        checkpoint.write_progress(
            folder,
            dataclasses.asdict(self.state)
            | {
                "saved_at": time.time(),
                "processes": self.processes,
                "fixed": self._fixed(),
                "task": self.task.state(),
            },
        )

    def _resume(self, directory: Path) -> None:
        progress = checkpoint.read_progress(directory)
        self._check_same_run(directory, progress["fixed"])
        names = [entry.name for entry in dataclasses.fields(RunState)]
        self.state = RunState(**{name: progress[name] for name in names})
        self.epoch_means = Means(self.state.epoch_means)
        self.log_means = Means(self.state.log_means)
        self.task.load_state(progress["task"])
        weights = checkpoint.load_tensors(directory, "weights.pt")
        with torch.no_grad(), self.engine.whole(write=True):
            for name, parameter in self.engine.by_name().items():
                parameter.copy_(weights[name])
        saved = checkpoint.load_tensors(directory, "optimizer.pt")
        self.engine.load_state(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        if progress["processes"] == self.processes:
            randoms = checkpoint.load_tensors(directory, f"rng_{place().rank}.pt")
            checkpoint.set_random_state(randoms)
        else:
            log.warning(
                "%s was written by %d processes and goes on with %d: the same rows and steps; "
                "dropout draws other numbers.",
                *(directory, progress["processes"], self.processes),
            )

    def _fixed(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        return {
            "rows": len(self.task.train_data),
            "tokens": int(sum(self.task.train_data.lengths)),
            "rows_per_step": self._step_rows,
            "seed": self.place.seed,
            "trainable": sorted(self.engine.by_name()),
            "engine": self.engine.kind_of_state,
        }

    def _check_same_run(self, directory: Path, then: dict[str, Any]) -> None:
        now = self._fixed()
        changed = [f"{name}: {then[name]} then, {now[name]} now" for name in now if
                   then[name] != now[name]]  # fmt: skip
        if changed:
            raise CheckpointError(
                f"{directory} belongs to another run; " + "; ".join(changed)[:800] + ". "
                "Give the same arguments (rows_per_step is batch_size x accumulation x processes), "
                "or start anew from its weights with resume_path."
            )

    # -- opening and closing

    def _open(self) -> None:
        options = self.options
        self.accelerator = make_accelerator(options, self.task, self.place.output_dir)
        self.rank, self.world = share()
        self.processes = place().size
        if self.accelerator.num_processes != self.processes:
            raise TrainingError(
                f"accelerate counts {self.accelerator.num_processes} processes where "
                f"{self.processes} were launched: make the trainer before any Accelerator or "
                "PartialState."
            )
        self._step_rows = self.task.batch_size * options.gradient_accumulation_steps * self.world
        if self._step_rows % self.task.samples_per_row:
            raise ConfigError(
                f"an optimizer step of {self._step_rows} completions (batch size x accumulation x "
                f"processes) cannot be cut into groups of {self.task.samples_per_row}."
            )
        from accelerate.utils import set_seed

        set_seed(self.place.seed + self.rank)  # processes with the same rows drop out the same
        optimizer = _optimizer(self.task.model, options)
        self.task.model.train()
        self.engine = make_engine(self.accelerator, self.task.model, optimizer)
        self.task.model, self.task.at_hand = self.engine.model, self.engine.at_hand
        self._closers.append(self._release)
        self._closers.append(self.task.close)
        self.task.open(self.accelerator.device)
        total = self._total_steps()
        self.schedule = _schedule(self.engine.torch_optimizer, options, total)
        resumed = self._find_checkpoint()
        if resumed:
            self._resume(resumed)
            log.info("resuming %s at step %d of %d", resumed, self.state.step, total)
            if self.state.epoch > options.num_epochs:
                log.warning("%s is a finished run: nothing is left to train.", resumed)
        self.task.global_step, self.task.max_steps = self.state.step, total
        self.records = Records(
            self.accelerator,
            self.place.output_dir,
            self.place.task_name,
            options.trackers,
            dataclasses.asdict(options),
            self.state.step if resumed else None,
        )
        self._closers.append(self.records.close)
        self._progress = Progress(
            total, self.state.step, options.progress if place().is_main else False
        )
        self._closers.append(self._progress.close)

    def _find_checkpoint(self) -> Path | None:
        wanted = self.options.resume_from_checkpoint
        if wanted is None:
            return None
        found = checkpoint.find(wanted, self.place.checkpoints)
        if found is None:
            log.warning("no checkpoint below %s: starting afresh.", self.place.checkpoints)
        return found

    def _close(self) -> None:
        self.signal.disarm()
        while self._closers:
            self._closers.pop()()

    def _release(self) -> None:
        from accelerate.state import AcceleratorState

        self.task.model = self.engine.close()
        del self.task.at_hand, self.engine
        self.accelerator.free_memory()
        AcceleratorState._reset_state()  # the next trainer may want another precision

    # -- small things

    def _plan(self, epoch: int) -> list[list[int]]:
        lengths = self.task.train_data.lengths
        grouped = self.options.group_by_length
        rows = self._step_rows // self.task.samples_per_row
        return plan_epoch(lengths, rows, self.place.seed, epoch, grouped)

    def _total_steps(self) -> int:
        draws = -(-len(self.task.train_data) * self.task.samples_per_row // self._step_rows)
        return draws * self.options.num_epochs * self.task.updates_per_step

    def _totals(self, micro_batches: list[MicroRows], batches: list[Batch]) -> dict[str, float]:
        """The counts of the whole optimizer step: over micro-batches, then over ranks."""
        names = sorted(batches[0].counts)
        mine = [
            sum(b.counts[name] for m, b in zip(micro_batches, batches, strict=True) if m.counted)
            for name in names
        ]
        if self.world > 1:
            row = torch.tensor([mine], dtype=torch.float32, device=self.accelerator.device)
            rows = self.accelerator.gather(row)[:: self.processes // self.world]
            mine = rows.double().sum(0).tolist()
        # A step without anything to count has a zero gradient, not a division by zero.
        return {name: max(value, 1.0) for name, value in zip(names, mine, strict=True)}

    def _halve(self, micro_batches: list[MicroRows], error: Exception) -> list[MicroRows]:
        """Smaller micro-batches of the same step: the effective batch is kept."""
        largest = max(len(micro.rows) for micro in micro_batches)
        if self.processes > 1 or largest == 1 or uses_deepspeed():
            raise TrainingError(
                f"out of memory at a micro-batch of {largest} rows: use a smaller batch_size with "
                "more gradient_accumulation_steps, a smaller max_length, or "
                "gradient_checkpointing=True."
            ) from error
        self.task.batch_size = max(1, min(self.task.batch_size, largest) // 2)
        log.warning("out of memory: micro-batches of at most %d rows.", self.task.batch_size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        size = self.task.batch_size
        return [
            MicroRows(micro.rows[start : start + size], micro.counted)
            for micro in micro_batches
            for start in range(0, len(micro.rows), size)
        ]

    def _not_finite(self, micro_batches: list[MicroRows], norm: float) -> None:
        rows = [row.get("row", "?") for micro in micro_batches for row in micro.rows]
        problem = (
            f"step {self.state.step + 1} of epoch {self.state.epoch}: the gradient norm is {norm}. "
            f"Source rows of the step: {rows[:64]}."
        )
        if self.options.non_finite == "stop":
            raise TrainingError(
                f"{problem} Look at these rows, lower lr, or skip such steps with "
                "non_finite='skip'."
            )
        log.warning("%s The step is skipped.", problem)
        self.schedule.step()

    def _stop_if_asked(self) -> None:
        asked = any(gather_objects(self.signal.received is not None))
        if not asked:
            return
        if self.options.save_strategy != "no" and self.saved_step != self.state.step:
            self._save()
            log.warning("stopped by a signal; %s holds the run.", self.saved)
        raise self.signal.exception()

    @property
    def saved_step(self) -> int | None:
        return int(self.saved.name.rsplit("_", 1)[1]) if self.saved else None

    def _record(self, metrics: dict[str, tuple[Any, float]]) -> None:
        self.epoch_means.add(metrics)
        self.log_means.add(metrics)

    def _gathered(self, means: Means) -> dict[str, float]:
        return mean_of(gather_shares(means.state()))

    def _shown(self) -> dict[str, float]:
        if not self._progress.shown:
            return {}
        means = self.epoch_means.means()
        return {
            name: means[key]
            for name, key in (("loss", "loss"), ("tok/s", "tokens_per_second"))
            if key in means
        }

    def _lr(self) -> float:
        return self.schedule.get_last_lr()[0]


def _optimizer(model: torch.nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """AdamW; weight decay on matrices only, never on biases, norms or magnitudes."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=options.lr,
        betas=tuple(options.adam_betas),
        eps=options.adam_epsilon,
    )


def _schedule(optimizer: torch.optim.Optimizer, options: LoopOptions, total: int) -> Any:
    from transformers import get_scheduler

    warmup = math.ceil(total * options.warmup_ratio)
    return get_scheduler(options.lr_scheduler_type, optimizer, warmup, total)
