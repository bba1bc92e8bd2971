"""DeepSpeed's ZeRO as a placement."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from main.errors import CheckpointError
from main.system.processes import gather_objects, this_process
from main.trainer.placement.base import Placement


class DeepSpeed(Placement):
    """ZeRO: gradients and optimizer states are shared out (stage 2), and the weights too (3).

    The optimizer's step is part of the last backward pass of a step.
    """

    kind_of_state = "DeepSpeed"
    passes_alone = False
    rehearses = False  # it counts the passes of a step

    def passing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        engine: Any = self.model
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        # Divided by the steps in its configuration, which the loop has done in its own way.
        engine.backward(loss * engine.gradient_accumulation_steps())
        if last:
            engine.step()

    def meet(self) -> None:
        """They have met in the backward passes."""

    def clip(self, limit: float) -> float:
        return float(self.model.get_global_grad_norm())  # type: ignore[operator]

    def step(self) -> bool:
        return not getattr(self.zero, "overflow", False)

    def zero_grad(self) -> None:
        self.model.zero_grad()

    @property
    def torch_optimizer(self) -> torch.optim.Optimizer:
        return self.zero.optimizer

    @property
    def zero(self) -> Any:
        """DeepSpeed's own optimizer, around torch's."""
        return self.model.optimizer

    @contextmanager
    def whole(self, write: bool = False) -> Iterator[None]:
        from deepspeed.runtime.zero import GatheredParameters

        parameters = [p for p in self.trainable if hasattr(p, "ds_id")]
        with GatheredParameters(parameters, modifier_rank=0 if write else None):
            yield

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        from deepspeed.runtime.zero import GatheredParameters

        parameters = [p for p in self.model.parameters() if hasattr(p, "ds_id")]
        with GatheredParameters(parameters), _without_hooks(self.model, "deepspeed"):
            yield

    def state(self) -> list[Any]:
        state = self.zero.state_dict()
        plain = {name: _plain(value) for name, value in state.items() if _is_plain(value)}
        return gather_objects({"zero": plain, "loss_scaler": _numbers(self.zero.loss_scaler)})

    def load_state(self, parts: list[Any]) -> None:
        here = this_process()
        if len(parts) != here.size:
            raise CheckpointError(
                f"DeepSpeed shared the optimizer's state out over {len(parts)} processes, and this "
                f"run has {here.size}. Resume with {len(parts)}, or start anew from the weights "
                "with resume_path."
            )
        mine = parts[here.rank]
        vars(self.zero.loss_scaler).update(mine["loss_scaler"])
        # What is not plain (objects of DeepSpeed) is the same in every run of this configuration.
        self.zero.load_state_dict([self.zero.state_dict() | mine["zero"]] * here.size)

    def close(self) -> nn.Module:
        module = self.model.module
        self.model.destroy()  # type: ignore[operator]
        return module  # type: ignore[return-value]


@contextmanager
def _without_hooks(model: nn.Module, package: str) -> Iterator[None]:
    """Modules compute without what `package` does before and after: it would free their weights."""
    kept = []
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            kept.append((hooks, dict(hooks)))
            for number, hook in kept[-1][1].items():
                if hook.__module__.startswith(package):
                    del hooks[number]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _is_plain(value: Any) -> bool:
    """Made of tensors, numbers, strings, lists and dicts: what a file without code can hold."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, Tensor) or type(value) in (bool, int, float, str)


def _plain(value: Any) -> Any:
    """A copy on the CPU."""
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.detach().cpu().clone() if isinstance(value, Tensor) else value


def _numbers(holder: Any) -> dict[str, Any]:
    return {
        name: value for name, value in vars(holder).items() if type(value) in (bool, int, float)
    }
