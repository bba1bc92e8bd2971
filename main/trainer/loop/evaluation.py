"""Every evaluation row once, whatever the number of processes; random states are left alone."""

import torch

from main.loaders.order import shard
from main.system.processes import gather_shares
from main.trainer.loop import saving
from main.trainer.loop.memory import Room
from main.trainer.loop.opening import Opened
from main.trainer.loop.records import Means, mean_of
from main.trainer.loop.task import Task


class Evaluator:
    """Metrics of the task's evaluation rows by the model as it is."""

    def __init__(self, task: Task, opened: Opened):
        self.task, self.opened = task, opened
        self.room = Room(task.batch_size_eval, "evaluation batches")

    @torch.no_grad()
    def metrics(self) -> dict[str, float]:
        random_state, model = saving.random_state(), self.opened.run.model
        model.eval()
        try:
            means = self.room.fitting(self._means)
        finally:
            model.train()
            saving.set_random_state(random_state)
        return mean_of(gather_shares(means.state()))

    def _means(self, rows_at_once: int) -> Means:
        means, data = Means(), self.task.eval_data
        assert data is not None
        rank, world = self.opened.rank, self.opened.world
        for piece in shard(range(len(data)), data.lengths, rows_at_once, rank, world):
            metrics = self.task.evaluate([data[i] for i in piece.rows], self.opened.device)
            if piece.counted:
                means.add(metrics)
        return means
