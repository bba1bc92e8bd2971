"""What is not finite when a step's gradient is not: losses of some rows, or weights."""

import math
from collections.abc import Iterator

import torch

from main.trainer.loop import saving
from main.trainer.loop.task import MicroBatch, Task, to_device

SHOWN = 64


def what_is_not_finite(task: Task, micro_batches: list[MicroBatch], alone: bool) -> str:
    """Sentences on the rows of a step and on the model's weights.

    Args:
        alone: rows can be computed one by one here, without other processes.
    """
    rows = [task.source(item) for micro in micro_batches for item in micro.items]
    said = f"Source rows of the step: {rows[:SHOWN]}."
    if weights := list(_weights(task)):
        return f"{said} These weights are not finite: {weights[:8]}."
    found = list(dict.fromkeys(_broken(task, micro_batches))) if alone else []
    if found and len(found) < len(set(rows)):
        return f"{said} The loss of these is not finite: {found[:SHOWN]}."
    return said


def _weights(task: Task) -> Iterator[str]:
    for name, parameter in task.model.named_parameters():
        if parameter.is_floating_point() and not parameter.detach().isfinite().all():
            yield name


@torch.no_grad()
def _broken(task: Task, micro_batches: list[MicroBatch]) -> Iterator[int]:
    ours = saving.random_state()
    for item in (item for micro in micro_batches for item in micro.items):
        batch = task.collate([item])
        totals = {name: max(value, 1.0) for name, value in batch.counts.items()}
        output = task.loss(to_device(batch.tensors, task.run.device), totals)
        if not math.isfinite(float(output.loss)):
            yield task.source(item)
    saving.set_random_state(ours)
