"""The training loop of every method.

    for epoch:
        for rows in plan:                       # one global draw of rows, whatever the processes
            for update in task.updates(rows):   # of which a method makes its optimizer steps
                step(update)                    # main/trainer/loop/step.py
            log, save, evaluate when due        # main/trainer/loop/due.py
        yield EpochResult

It knows no algorithm: a method is a `Task` (main/trainer/loop/task.py). A checkpoint is written
before its weights are evaluated, and is told afterwards what was found.
"""

import logging
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Any

from main.errors import RewardError
from main.loaders.order import plan_epoch, shard, spread
from main.loaders.shares import AGAIN
from main.models.training_record import arguments_of
from main.system.processes import decide, gather_objects, gather_shares, this_process
from main.trainer.arguments import LoopOptions
from main.trainer.loop import best, saving
from main.trainer.loop.alone import alone
from main.trainer.loop.checkpoints import Checkpoints, find
from main.trainer.loop.due import due
from main.trainer.loop.evaluation import Evaluator
from main.trainer.loop.guards import StopSignal
from main.trainer.loop.home import Home
from main.trainer.loop.identity import check, identity
from main.trainer.loop.opening import Opened
from main.trainer.loop.records import Means, Progress, Records, mean_of
from main.trainer.loop.saving import Snapshot
from main.trainer.loop.state import RunState
from main.trainer.loop.step import Stepper
from main.trainer.loop.task import MicroBatch, Row, Rows, Task, shares_of
from main.trainer.loop.throughput import Throughput, peak_memory
from main.trainer.loop.turns import Turn
from main.trainer.loop.watch import Watch
from main.types import EpochResult

log = logging.getLogger(__name__)


class Loop:
    """One run of a task; `run()` is the generator that a trainer returns.

    Raises:
        ConfigError: the best model is to be told by what is not evaluated.
    """

    def __init__(self, task: Task, options: LoopOptions, home: Home):
        best.check_metric(task, options)
        self.task, self.options, self.home = task, options, home
        self.state, self.signal, self.turn = RunState(), StopSignal(), Turn()
        self.rehearsed = not task.rehearses
        self.opened: Opened | None = None
        self._myself: Callable[[], Generator | None] = lambda: None

    # -- the run, top to bottom

    def run(self) -> Iterator[EpochResult]:
        run = self._epochs()
        self._myself = weakref.ref(run)
        return run

    def _epochs(self) -> Generator[EpochResult, None, None]:
        options = self.options
        reads = options.resume_from_checkpoint is not None
        saves = reads or options.save_strategy != "no"
        with alone(self.home, saves, self._myself), self.turn:
            try:
                self._open()
                self._answer_first()
                yield from self._results()
                if options.load_best_model_at_end:
                    self.checkpoints.load_best()
            finally:
                self.signal.disarm()
                if self.opened:
                    self.opened.close()
                self.turn.end()

    def _results(self) -> Iterator[EpochResult]:
        while not (self._is_over() and self.state.told == self.state.step):
            self.signal.arm()
            result = self._epoch()
            self._stop_if_asked()
            self.signal.disarm()
            ours = saving.random_state()
            with self.turn.given_up():
                yield result
            saving.set_random_state(ours)  # what the caller drew does not matter

    def _epoch(self) -> EpochResult:
        try:
            return self._trained_epoch()
        except RewardError:  # between two draws, and on all processes
            self._keep("a function that judges answers failed")
            raise

    def _trained_epoch(self) -> EpochResult:
        self._do_what_is_due()  # what a resumed run had saved before it was done
        plan = self._plan()
        self._rehearse(plan)
        while self.state.index < len(plan) and not self._is_over():
            self._train_on(plan[self.state.index])
            self._do_what_is_due()
            if self.state.index < len(plan):
                self._stop_if_asked()
        return self._result()

    def _rehearse(self, plan: list[list[int]]) -> None:
        """Once a run the micro-batch with the longest row is tried, if it does not come first.

        Memory that does not suffice shows at once then; weights and random numbers stay.
        """
        todo = plan[self.state.index :][: self.total_steps - self.state.step]
        if self.rehearsed or not todo:
            return
        self.rehearsed, lengths = True, self.task.train_data.lengths
        longest = max(todo, key=lambda rows: max(lengths[row % AGAIN] for row in rows))
        if longest is not todo[0]:
            ours = saving.random_state()
            update = next(iter(self.task.updates(self._draw(longest), self.state.step)))
            self.stepper.rehearse(update.micro_batches[0])
            saving.set_random_state(ours)

    def _train_on(self, rows: list[int]) -> None:
        """Draw the step's rows for this rank and make the optimizer steps the task asks for."""
        self.throughput.begin()
        tokens = 0
        self.state.before = self.state.step
        for update in self.task.updates(self._draw(rows), self.state.step):
            tokens += self.stepper.step(update.micro_batches)
            self.state.record(update.metrics or {})
            if self.state.step == self.total_steps:
                break
        self.state.record(self.throughput.end(tokens))
        self.state.index += 1
        self.progress.show(self.state.step, self.state.epoch, self.state.epoch_means)

    def _draw(self, rows: list[int]) -> list[MicroBatch]:
        """This rank's share; a row with several samples counts once for each."""
        data, samples, example = self.task.train_data, self.task.samples_per_row, self.task.example
        numbers = [row * samples + sample for row in rows for sample in range(samples)]
        lengths = {number: data.lengths[number // samples % AGAIN] for number in numbers}
        at_once = self.stepper.room.rows
        parts = spread(numbers, self.task.steps_per_draw)
        return [
            MicroBatch(
                [example(_again(data, n // samples), n % samples) for n in piece.rows],
                counted,
                part,
            )
            for part, mine in enumerate(parts)
            # A last draw may have fewer completions than steps: one that does not count then.
            for piece in shard(mine or numbers[:1], lengths, at_once, self.rank, self.world)
            for counted in [bool(mine) and piece.counted]
        ]

    # -- what is due, each once: records, then a checkpoint, then an evaluation

    def _do_what_is_due(self) -> None:
        if self.state.step == 0:
            return
        state = self.state
        now = due(self.options, state.before, state.step, self._epoch_ends(), self._is_over())
        if now.log:
            self._log()
        if now.save:
            self._save()
        if now.evaluate:
            self._evaluate()

    def _log(self) -> None:
        if self.state.logged == self.state.step:
            return
        by_epoch = self.options.logging_strategy == "epoch"
        means = self.state.epoch_means if by_epoch else self.state.window
        metrics = self._gathered(means)
        self._write("train", metrics | self._where())
        self._tell(metrics)
        self.state.window, self.state.logged = Means(), self.state.step

    def _save(self) -> None:
        if self.checkpoints.latest is None:
            self.records.flush()
            self.checkpoints.save()
            self.checkpoints.rotate()

    def _evaluate(self) -> None:
        if self.task.eval_data is None or self.state.evaluated == self.state.step:
            return
        answered = self.evaluator.answered()
        scores = answered.scores if answered else {}
        self.state.evaluation = self.evaluator.metrics() | scores
        self.state.evaluated = self.state.step
        self._write("eval", self.state.evaluation)
        if answered:
            self.records.table("generated", answered.table, self.state.step, self._epochs_done())
        best.compare(self.state, self.options, self.checkpoints.latest)
        self.checkpoints.amend()
        if self._stopped_early():
            self._do_what_is_due()  # the run ends here
        self.checkpoints.rotate()

    def _answer_first(self) -> None:
        """What the model answers before it is trained, where answers are asked for."""
        answered = self.evaluator.answered() if self.state.step == 0 else None
        if answered:
            self._write("eval", answered.scores)

    def _result(self) -> EpochResult:
        """Of the epoch that has ended, or of the part of one that the run ends with."""
        state, epoch = self.state, self.state.epoch
        train = self._gathered(state.epoch_means) | self._where()
        if self.options.logging_strategy == "no":
            self._tell(train)
        text = self.task.sample_text()
        if text:
            self.records.text("samples", text, state.step, epoch)
        evaluation = state.evaluation if state.evaluated == state.step else {}
        if state.index == self.draws:
            state.epoch, state.index, state.epoch_means = epoch + 1, 0, Means()
        state.told = state.step
        self.checkpoints.amend()
        checkpoint = self.checkpoints.written or self.checkpoints.latest
        self.checkpoints.written = None
        return EpochResult(epoch, train, evaluation, checkpoint, state.step)

    def _tell(self, metrics: dict[str, float]) -> None:
        """Signs that the run goes wrong, on the main process."""
        for sign in self.watch.see(self.state.step, metrics) if this_process().is_main else ():
            log.warning("step %d: %s", self.state.step, sign)
            self.records.warn(self.state.step, sign)

    def _warn(self, step: int, text: str) -> None:
        self.records.warn(step, text)

    # -- where the run is

    def _is_over(self) -> bool:
        return self.state.step >= self.total_steps or self._stopped_early()

    def _stopped_early(self) -> bool:
        return best.patience_is_over(self.state, self.options)

    def _epoch_ends(self) -> bool:
        """After the last draw of an epoch; the state of a finished epoch names the next one."""
        return self.state.index in (0, self.draws)

    def _stop_if_asked(self) -> None:
        if not any(gather_objects(self.signal.received is not None)):
            return
        self._keep("stopped by a signal")
        raise self.signal.exception()

    def _keep(self, cause: str) -> None:
        """A checkpoint before the run ends early."""
        if self.options.save_strategy != "no" and self.state.step:
            self._save()
            log.warning("%s; %s holds the run.", cause, self.checkpoints.latest)

    # -- opening

    def _open(self) -> None:
        options, state, task = self.options, self.state, self.task
        snapshot = find(options, self.home, task.companions)
        known = self._identified(snapshot)
        self.opened = opened = Opened(task, options, self.home)
        self.rank, self.world = opened.rank, opened.world
        self.total_steps, self.draws = opened.length
        opened.at_the_end(task.close)
        task.open(opened.run)
        self.rehearsed |= not opened.placement.rehearses
        self.stepper = Stepper(task, options, opened, state, self._warn)
        self.throughput = Throughput(task.work, opened.run, self.world)
        self.evaluator = Evaluator(task, opened)
        self.checkpoints = Checkpoints(task, options, self.home, opened, state, known)
        self._begin_or_resume(snapshot)
        if options.save_strategy != "no":
            decide(lambda: task.write_settings(self.home.checkpoints))
        evaluated = state.evaluated
        self.watch = Watch(self.state.memory, opened.placement.by_name())
        self.records = Records(
            opened.accelerator,
            self.home,
            options.trackers,
            arguments_of(options),
            {"train": state.step, "eval": evaluated, "generated": evaluated} if snapshot else None,
        )
        opened.at_the_end(self.records.close)
        shown = options.progress if this_process().is_main else False
        self.progress = Progress(self.total_steps, state.step, shown)
        opened.at_the_end(self.progress.close)

    def _identified(self, snapshot: Snapshot | None) -> dict[str, Any]:
        """What this run is; the same as the checkpoint's that it goes on from."""
        task, options = self.task, self.options
        if snapshot is None and options.save_strategy == "no":
            return {}
        now = decide(lambda: identity(task, options, self.home))
        if snapshot is not None:
            then, apply = snapshot.progress["identity"], options.resume_changes == "apply"
            decide(lambda: check(snapshot.directory, then, now, apply))
            task.load_state(snapshot.progress["task"], snapshot.tensors)
        return now

    def _begin_or_resume(self, snapshot: Snapshot | None) -> None:
        assert self.opened
        if snapshot is None:
            self.state.number = decide(lambda: saving.next_number(self.home))
            return
        self.checkpoints.resume(snapshot)
        log.info(
            "resuming %s at step %d of %d",
            *(snapshot.directory, self.state.step, self.total_steps),
        )
        self.opened.run.step = self.state.step
        if self._is_over() and self.state.told == self.state.step:
            log.warning("%s is a finished run: nothing is left to train.", snapshot.directory)

    # -- small things

    def _plan(self) -> list[list[int]]:
        assert self.opened
        rows = self.opened.step_rows // self.task.samples_per_row * self.task.steps_per_draw
        data, grouped = self.task.train_data, self.options.group_by_length
        seed, epoch = self.home.seed, self.state.epoch
        return plan_epoch(data.lengths, rows, seed, epoch, grouped, shares_of(data))

    def _write(self, kind: str, metrics: dict[str, float]) -> None:
        self.records.write(kind, self.state.step, self._epochs_done(), metrics)

    def _epochs_done(self) -> float:
        return self.state.epoch - 1 + self.state.index / self.draws

    def _gathered(self, means: Means) -> dict[str, float]:
        return mean_of(gather_shares(means.state()))

    def _where(self) -> dict[str, float]:
        """What is no mean over steps."""
        assert self.opened
        lr = self.opened.schedule.get_last_lr()[0]
        return {"lr": lr, "peak_memory": peak_memory(self.opened.device)}


def _again(data: Rows, number: int) -> Row:
    """A row of a plan; drawn again, it has a number of its own, by which completions differ."""
    row, times = data[number % AGAIN], number // AGAIN
    return {**row, "row": row["row"] + times * AGAIN} if times else row
