"""One copy of the model held by several processes: split matrices (tensor parallelism), and frozen
weights that lie in parts and are lent to each layer while it computes (FSDP2).

    processes 0 1 | 2 3          tensor parallel size 2: 0 and 1 hold one copy and compute the same
              copy 0  copy 1     rows; with full sharding 0 and 2 halve what each of them would hold

What is trained is small: it stays whole, or split as its matrix is, and so does the optimizer's
state. Its gradients are averaged here, over copies.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from main.errors import ConfigError
from main.system.processes import this_process
from main.trainer.placement.base import Placement, average, gradients
from main.trainer.placement.layout import Layout
from main.trainer.placement.tensor_parallel import is_split, joined, local_part, part_like, split
from main.trainer.policy.logprobs import scoring


class Sharded(Placement):
    """Tensor parallelism x data parallelism, or x full sharding; or full sharding alone.

    Args:
        model: a `LogprobModel`, whole and alike on every process.
        optimizer: of its trainable parameters.
        layout: how to lay the model over the processes.
    """

    passes_alone = False

    def __init__(
        self, accelerator: Any, model: Any, optimizer: torch.optim.Optimizer, layout: Layout
    ):
        self.mesh = _mesh(accelerator.device, layout)
        before = _trainable(model)
        if layout.tensor > 1:
            split(model, model.causal_lm(), self.mesh["split"])
        if layout.full:
            _lend(model, self.mesh["copies"], layout)
        after = _trainable(model)
        _move_whole(model, accelerator.device)
        _switch(optimizer, {before[name]: after[name] for name in before})
        # 'evaluation': no DDP around it.
        prepared = accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)
        super().__init__(accelerator, prepared, accelerator.prepare_optimizer(optimizer))
        self.layout, self.units = layout, [m for m in model.modules() if isinstance(m, FSDPModule)]
        if self.units:
            _first_pass(prepared, accelerator.device)

    def passing(self) -> AbstractContextManager[None]:
        return nullcontext()

    def meet(self) -> None:
        """What all processes have is averaged over all: the copies stay equal to the last bit."""
        found = list(zip(self.trainable, gradients(self.trainable), strict=True))
        parts = [local_part(grad) for parameter, grad in found if is_split(parameter)]
        whole = [grad for parameter, grad in found if not is_split(parameter)]
        average(parts, self.mesh["copies"].get_group())
        average(whole, dist.group.WORLD)

    def clip(self, limit: float) -> float:
        self.accelerator.unscale_gradients(self.optimizer)
        squares = torch.zeros(2, device=self.accelerator.device)
        for parameter in self.trainable:
            grad = local_part(parameter.grad)  # type: ignore[arg-type]
            squares[int(is_split(parameter))] += grad.float().square().sum()
        parts = squares[1:]
        dist.all_reduce(parts, group=self.mesh["split"].get_group())
        norm = float(squares.sum().sqrt())
        scale = min(1.0, limit / (norm + 1e-6))
        if scale < 1:
            for parameter in self.trainable:
                parameter.grad.mul_(scale)  # type: ignore[union-attr]
        return norm

    @contextmanager
    def whole(self, write: bool = False) -> Iterator[None]:
        for unit in self.units:  # as reading a state dict does, where one is read
            unit.reshard()
        parts = []
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and is_split(parameter):
                    parts.append((module, name, parameter))
        for module, name, parameter in parts:
            module._parameters[name] = nn.Parameter(joined(parameter.detach()))
        try:
            yield
        finally:
            for module, name, parameter in parts:
                changed: Any = module._parameters[name]
                module._parameters[name] = parameter
                if write:
                    local_part(parameter.detach()).copy_(local_part(part_like(changed, parameter)))

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        for unit in self.units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self.units:
                unit.set_reshard_after_forward(self.layout.reshard, recurse=False)
                unit.reshard()

    def state(self) -> list[Any]:
        (part,) = super().state()
        state = part["optimizer"]["state"]
        whole = {i: {k: joined(v) for k, v in entry.items()} for i, entry in state.items()}
        return [part | {"optimizer": part["optimizer"] | {"state": whole}}]

    def load_state(self, parts: list[Any]) -> None:
        saved = parts[0]["optimizer"]
        groups = self.torch_optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        state = {
            i: {
                name: part_like(value.to(p.device), p) if value.shape == p.shape else value
                for name, value in saved["state"].get(i, {}).items()
            }
            for i, p in enumerate(parameters)
        }
        super().load_state([parts[0] | {"optimizer": saved | {"state": state}}])


def _mesh(device: torch.device, layout: Layout) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    shape = (this_process().size // layout.tensor, layout.tensor)
    return init_device_mesh(device.type, shape, mesh_dim_names=("copies", "split"))


def _lend(model: Any, mesh: Any, layout: Layout) -> None:
    """Share the frozen weights out; each layer gets them whole while it computes.

    Weights of another dtype than the model's stay where they are, with those that are trained.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    offload = CPUOffloadPolicy() if layout.offload and mesh.device_type != "cpu" else None
    how = {
        "mesh": mesh,
        "ignored_params": set(_kept(model)),
        "offload_policy": offload or OffloadPolicy(),
    }
    for unit in _units(model.causal_lm(), layout.units):
        fully_shard(unit, reshard_after_forward=layout.reshard, **how)
    fully_shard(model, **how)


def _units(causal_lm: Any, names: tuple[str, ...] | None) -> list[nn.Module]:
    """Decoder layers. A vision tower is none: rows without images would not enter it.

    Raises:
        ConfigError: the model has no layer of these class names.
    """
    wanted = set(names or causal_lm._no_split_modules or ())
    found = [m for m in causal_lm.get_decoder().modules() if type(m).__name__ in wanted]
    if not found:
        kinds = sorted({type(m).__name__ for m in causal_lm.modules() if len(list(m.children()))})
        raise ConfigError(
            f"FSDP: the {type(causal_lm).__name__} has no layers of class {sorted(wanted)}. Name "
            f"them with --fsdp_transformer_layer_cls_to_wrap; its classes are {kinds}."
        )
    return found


def _first_pass(model: nn.Module, device: torch.device) -> None:
    """The module that passes first is the one that lends; completions are drawn by a part of it."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    with scoring(model):
        model(input_ids=ids, loss_mask=torch.arange(2, device=device)[None] > 0)


def _move_whole(model: nn.Module, device: torch.device) -> None:
    """To the device what every process has; parts lie where they belong already."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
        scales = getattr(module, "quant_state", None)  # of 4-bit weights, small; not a buffer
        if scales is not None:
            scales.to(device)


def _kept(model: Any) -> list[nn.Parameter]:
    dtype = model.causal_lm().dtype
    return [p for p in model.parameters() if p.requires_grad or p.dtype != dtype]


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _switch(optimizer: torch.optim.Optimizer, now: dict[nn.Parameter, nn.Parameter]) -> None:
    """Parameters that were split are others."""
    for group in optimizer.param_groups:
        group["params"] = [now[parameter] for parameter in group["params"]]
        group["foreach"] = False  # split and whole tensors cannot be handled in one call
