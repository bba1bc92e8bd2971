"""Every evaluation row once, whatever the number of processes; random states are left alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from main.loaders.order import shard
from main.system.memory import Room
from main.system.processes import as_it_is, gather_shares, together
from main.trainer.loop import saving
from main.trainer.loop.opening import Opened
from main.trainer.loop.records import Means, mean_of
from main.trainer.loop.task import Answered, Metrics, Row, Task
from main.trainer.placement.base import is_shared_out


class Evaluator:
    """Metrics of the task's evaluation rows by the model as it is."""

    def __init__(self, task: Task, opened: Opened):
        self.task, self.opened = task, opened
        alone = task.evaluates_alone and not is_shared_out(task.model)
        self.room = Room(task.batch_size_eval, "evaluation batches", alone=alone)

    def metrics(self) -> dict[str, float]:
        with self._undisturbed():
            means = (together if self.room.alone else as_it_is)(self._means)
        return mean_of(gather_shares(means.state()))

    def answered(self) -> Answered | None:
        """Answers with their scores, where the task has them."""
        with self._undisturbed():
            return self.task.answered()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """No gradient, no dropout, and random numbers afterwards as if nothing had been drawn."""
        random_state, model = saving.random_state(), self.opened.run.model
        model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            model.train()
            saving.set_random_state(random_state)

    def _means(self) -> Means:
        means, data = Means(), self.task.eval_data
        assert data is not None
        rank, world, at_once = self.opened.rank, self.opened.world, self.task.batch_size_eval
        for piece in shard(range(len(data)), data.lengths, at_once, rank, world):
            for metrics in self.room.over([data[i] for i in piece.rows], self._evaluated):
                if piece.counted:
                    means.add(metrics)
        return means

    def _evaluated(self, rows: Sequence[Row]) -> Metrics:
        return self.task.evaluate(list(rows), self.opened.device)
