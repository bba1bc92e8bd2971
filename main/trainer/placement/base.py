"""How a step's gradients are made and applied: by one process, or by DDP.

The loop says what is computed; a placement knows where weights, gradients and optimizer states lie.
All processes must call its methods, in the same order. Others: zero.py (DeepSpeed) and sharded.py
(tensor parallelism, FSDP2) beside this file; main/trainer/loop/launch.py chooses.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Placement:
    """One process, or several with a whole copy of the model each (DDP).

    kind_of_state: placements of one kind can go on from each other's checkpoints.
    passes_alone: no process waits for another in a forward or backward pass.
    rehearses: a pass can be made whose gradient is thrown away.

    Args:
        accelerator: what prepared the model and the optimizer.
        model: prepared.
        optimizer: prepared.
    """

    kind_of_state: ClassVar[str] = "Placement"
    passes_alone: ClassVar[bool] = True
    rehearses: ClassVar[bool] = True

    def __init__(self, accelerator: Any, model: nn.Module, optimizer: Any):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.trainable = [p for p in model.parameters() if p.requires_grad]

    def passing(self) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch."""
        return self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, last: bool) -> None:
        """`last`: it is the step's last micro-batch."""
        self.accelerator.backward(loss)

    def meet(self) -> None:
        """Average the gradients over the processes, after the last micro-batch of a step.

        Not in the backward pass, as DDP does: all first agree that memory has sufficed.
        """
        if self.accelerator.num_processes > 1:
            average(gradients(self.trainable), dist.group.WORLD)

    def clip(self, limit: float) -> float:
        """Scale the gradients down to the norm `limit`; returns the norm that they had."""
        return float(self.accelerator.clip_grad_norm_(self.trainable, limit))

    def step(self) -> bool:
        """Apply the gradients; False when fp16's loss scale was too large for that."""
        self.optimizer.step()
        return not self.accelerator.optimizer_step_was_skipped

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        """The one whose learning rate a schedule sets."""
        return self.optimizer.optimizer

    def by_name(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by their names without wrappers."""
        model = self.accelerator.unwrap_model(self.model)
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def whole(self, write: bool = False) -> AbstractContextManager[None]:
        """Inside, every process has the trainable parameters as a whole; `write` keeps changes."""
        return nullcontext()

    def at_hand(self) -> AbstractContextManager[None]:
        """Inside, all weights are whole on every process, and none waits for another's pass."""
        return nullcontext()

    def state(self) -> list[Any]:
        """The optimizer's state; under DeepSpeed a part for each process."""
        scaler = self.accelerator.scaler
        scale = scaler.state_dict() if scaler else None
        return [{"optimizer": self.optimizer.state_dict(), "scaler": scale}]

    def load_state(self, parts: list[Any]) -> None:
        self.optimizer.load_state_dict(parts[0]["optimizer"])
        if parts[0]["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(parts[0]["scaler"])

    def close(self) -> nn.Module:
        """The model without wrappers."""
        self.zero_grad()
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)


def gradients(parameters: list[nn.Parameter]) -> list[Any]:
    """Those of the parameters; 0 where nothing was computed, as another process may have some."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in parameters]


def average(tensors: list[Any], group: Any) -> None:
    """Each becomes its mean over the processes of the group, to the last bit the same in all."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    flat /= dist.get_world_size(group)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))


def is_shared_out(model: nn.Module) -> bool:
    """Whether some of the weights lie in parts on several processes."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())
