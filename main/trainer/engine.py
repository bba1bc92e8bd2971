"""How a step's gradients are made and applied: by one process or DDP, or by DeepSpeed.

The loop says what is computed; an engine knows where weights, gradients and optimizer states lie.
All processes must call its methods, in the same order.
"""

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from main.errors import CheckpointError, ConfigError, MissingExtraError, TrainingError
from main.trainer import ds_config, layout
from main.trainer.arguments import LoopOptions
from main.trainer.task import Task
from main.utils.processes import gather_objects, join, launched, place, share, uses_deepspeed

log = logging.getLogger(__name__)


class Engine:
    """One process, or several with a whole copy of the model each (DDP).

    kind_of_state: engines of one kind can go on from each other's checkpoints.

    Args:
        accelerator: what prepared the model and the optimizer.
        model: prepared.
        optimizer: prepared.
    """

    kind_of_state: ClassVar[str] = "Engine"

    def __init__(self, accelerator: Any, model: nn.Module, optimizer: Any):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.trainable = [p for p in model.parameters() if p.requires_grad]

    def passing(self, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch; gradients meet in the step's last one."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, last: bool) -> None:
        self.accelerator.backward(loss)

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


class DeepSpeed(Engine):
    """ZeRO: gradients and optimizer states are shared out (stage 2), and the weights too (3).

    The optimizer's step is part of the last backward pass of a step.
    """

    kind_of_state = "DeepSpeed"

    def passing(self, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        engine: Any = self.model
        engine.set_gradient_accumulation_boundary(is_boundary=last)
        # Divided by the steps in its configuration, which the loop has done in its own way.
        engine.backward(loss * engine.gradient_accumulation_steps())
        if last:
            engine.step()

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
        here = place()
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


# Switches of `accelerate launch` whose checkpoints the loop could not write whole.
_UNSUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "accelerate's parallelism config",
}


def launch_problems() -> list[str]:
    """One sentence for everything in how this process was launched that cannot work."""
    found = [
        f"{name} is not supported. Launch several processes with a whole model each (DDP), or "
        "share the weights out with DeepSpeed ZeRO stage 3 (ds_config.json)."
        for switch, name in _UNSUPPORTED.items()
        if os.environ.get(switch, "false").lower() == "true"
    ]
    found += layout.launch_problems()
    return found + (ds_config.check() if uses_deepspeed() else [])


def make_accelerator(options: LoopOptions, task: Task, output_dir: Path) -> Any:
    """accelerate's object for the set-up that this process was launched with."""
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration

    on_cpu = next(task.model.parameters()).device.type == "cpu"
    settings: dict[str, Any] = {"cpu": on_cpu}
    if uses_deepspeed():
        on_cpu = join().device.type == "cpu"
        settings = {"deepspeed_plugin": _plugin(options, task, on_cpu)}
    elif layout.current().is_shared:
        on_cpu = join().device.type == "cpu"  # the model waits in the CPU's memory
        settings = {"cpu": on_cpu}
        _agree_on_layout(options, task)
    elif launched():
        join()
    elif os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ:
        log.warning(
            "`accelerate launch --cpu --num_processes N` starts one process only. Several on CPUs: "
            "`accelerate launch --multi_gpu --num_processes N`, or `torchrun --nproc-per-node N`."
        )
    precision = "bf16" if options.bf16 else "fp16" if options.fp16 else "no"
    if precision == "fp16" and on_cpu:
        log.warning("fp16 needs a GPU: training in float32 on this CPU.")
        precision = "no"
    logs = str(output_dir / "logs" / "tensorboard_logs")
    return Accelerator(
        mixed_precision=precision,
        log_with=options.trackers or None,
        project_config=ProjectConfiguration(str(output_dir), logging_dir=logs),
        **settings,
    )


def _plugin(options: LoopOptions, task: Task, on_cpu: bool) -> Any:
    """accelerate's DeepSpeed settings, in agreement with the trainer; `options` take its precision.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
        ConfigError: file and trainer disagree, or an option that DeepSpeed's step cannot honour.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingExtraError("deepspeed", "deepspeed", "accelerate's DeepSpeed")
    from accelerate import DeepSpeedPlugin

    if options.non_finite == "skip":
        raise ConfigError(
            "non_finite='skip' cannot be had under DeepSpeed, which steps before the norm is known "
            "(fp16 skips by itself). Use non_finite='stop'."
        )
    file = ds_config.read()
    config = _agreed(DeepSpeedPlugin().deepspeed_config if file is None else file, options, task)
    if config["fp16"]["enabled"] and on_cpu:
        log.warning("fp16 needs a GPU: training in float32 on this CPU.")
        config["fp16"]["enabled"] = False
    options.bf16, options.fp16 = (config[kind]["enabled"] for kind in ("bf16", "fp16"))
    return DeepSpeedPlugin(hf_ds_config=config)


def _agree_on_layout(options: LoopOptions, task: Task) -> None:
    """Take the precision of a file that asks for tensor parallelism.

    Raises:
        ConfigError: file and trainer disagree; fp16, whose scale split gradients cannot share.
    """
    if layout.current().tensor == 1:
        return
    config = _agreed(ds_config.read() or {}, options, task)
    options.bf16, options.fp16 = (config[kind]["enabled"] for kind in ("bf16", "fp16"))
    if options.fp16:
        raise ConfigError(
            "fp16 does not go with tensor parallelism: its loss scale would have to follow the "
            "gradients of every process. Use bf16."
        )


def _agreed(config: dict[str, Any], options: LoopOptions, task: Task) -> dict[str, Any]:
    return ds_config.agree(
        config,
        ds_config.Agreed(
            task.batch_size,
            options.gradient_accumulation_steps,
            share().size,
            options.max_grad_norm,
            options.bf16,
            options.fp16,
        ),
    )


def make_engine(accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> Engine:
    """Prepare model and optimizer for the set-up that the processes were launched with.

    Raises:
        TrainingError: a model that an earlier run has shared out.
    """
    from accelerate import DistributedType

    if is_shared_out(model):
        raise TrainingError(
            "this trainer's weights are still shared out by its last run. Make a new Trainer, with "
            "resume_path to go on from the adapter."
        )
    if layout.current().is_shared:
        from main.trainer.sharded import Sharded

        return Sharded(accelerator, model, optimizer, layout.current())
    kind = DeepSpeed if accelerator.distributed_type == DistributedType.DEEPSPEED else Engine
    return kind(accelerator, *accelerator.prepare(model, optimizer))


def is_shared_out(model: nn.Module) -> bool:
    """Whether some of the weights lie in parts on several processes."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


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
