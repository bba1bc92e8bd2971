"""What the launcher asked for: checked, agreed with the trainer's arguments, made a placement."""

import importlib.util
import logging
import os
import warnings
from typing import Any

import torch
from torch import nn

from main.errors import ConfigError, MissingExtraError, TrainingError
from main.options import raise_all
from main.system.processes import join, launched, this_copy, uses_deepspeed
from main.trainer.arguments import LoopOptions, Precision
from main.trainer.loop.home import Home
from main.trainer.loop.task import Task
from main.trainer.placement import ds_config, layout
from main.trainer.placement.base import Placement, is_shared_out
from main.trainer.placement.zero import DeepSpeed

log = logging.getLogger(__name__)

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


def accept_launch() -> layout.Layout:
    """How the launcher wants the model laid over the processes; its own switches are off then.

    Raises:
        ConfigError: something in how this process was launched cannot work.
    """
    raise_all(launch_problems())
    return layout.take_over()


def make_accelerator(options: LoopOptions, task: Task, home: Home) -> tuple[Any, Precision]:
    """accelerate's object for the set-up that this process was launched with, and its precision."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

    device = next(task.model.parameters()).device
    on_cpu = device.type == "cpu"
    settings: dict[str, Any] = {"cpu": on_cpu}
    precision = options.precision
    if uses_deepspeed():
        on_cpu = join().device.type == "cpu"
        plugin, precision = _plugin(options, task, on_cpu)
        settings = {"deepspeed_plugin": plugin}
    elif layout.current().is_shared:
        on_cpu = join().device.type == "cpu"  # the model waits in the CPU's memory
        settings = {"cpu": on_cpu}
        precision = _agree_on_layout(options, task)
    elif launched():
        join()
    elif os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and "MASTER_PORT" in os.environ:
        log.warning(
            "`accelerate launch --cpu --num_processes N` starts one process only. Several on CPUs: "
            "`accelerate launch --multi_gpu --num_processes N`, or `torchrun --nproc-per-node N`."
        )
    if precision == "fp16" and on_cpu:
        log.warning("fp16 needs a GPU: training in float32 on this CPU.")
        precision = "no"
    alone = not (launched() or uses_deepspeed() or layout.current().is_shared)
    if alone:
        _forget_other_device(device)
    accelerator = Accelerator(
        mixed_precision=precision,
        log_with=options.trackers or None,
        project_config=ProjectConfiguration(str(home.output_dir), logging_dir=str(home.logs)),
        # No pass waits for another process: what does not fit here is computed here once more.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        **settings,
    )
    if alone:
        accelerator.state.device = device  # 'cuda:1' too, where accelerate takes the first
    return accelerator, precision


def _forget_other_device(device: torch.device) -> None:
    """accelerate keeps the device of a process's first run, and would move this model there."""
    from accelerate.state import AcceleratorState, PartialState

    kept = PartialState._shared_state.get("device")
    if kept is not None and kept.type != device.type:
        AcceleratorState._reset_state(reset_partial_state=True)


def _plugin(options: LoopOptions, task: Task, on_cpu: bool) -> tuple[Any, Precision]:
    """accelerate's DeepSpeed settings, in agreement with the trainer, and the precision in them.

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
    return DeepSpeedPlugin(hf_ds_config=config), _precision(config)


def _agree_on_layout(options: LoopOptions, task: Task) -> Precision:
    """The precision, also where a file that asks for tensor parallelism says it.

    Raises:
        ConfigError: file and trainer disagree; fp16, whose scale split gradients cannot share.
    """
    if layout.current().tensor == 1:
        return options.precision
    precision = _precision(_agreed(ds_config.read() or {}, options, task))
    if precision == "fp16":
        raise ConfigError(
            "fp16 does not go with tensor parallelism: its loss scale would have to follow the "
            "gradients of every process. Use bf16."
        )
    return precision


def _precision(config: dict[str, Any]) -> Precision:
    """Of a DeepSpeed file whose "auto" is filled in."""
    kinds: tuple[Precision, ...] = ("bf16", "fp16")
    return next((kind for kind in kinds if config[kind]["enabled"]), "no")


def _agreed(config: dict[str, Any], options: LoopOptions, task: Task) -> dict[str, Any]:
    return ds_config.agree(
        config,
        ds_config.Agreed(
            task.batch_size,
            options.gradient_accumulation_steps,
            this_copy().size,
            options.max_grad_norm,
            options.bf16,
            options.fp16,
        ),
    )


def make_placement(
    accelerator: Any, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Placement:
    """Prepare model and optimizer for the set-up that the processes were launched with.

    Raises:
        TrainingError: a model that an earlier run has shared out.
    """
    if is_shared_out(model):
        raise TrainingError(
            "this trainer's weights are still shared out by its last run. Make a new Trainer, with "
            "resume_path to go on from the adapter."
        )
    kind = placement_kind()
    if layout.current().is_shared:
        return kind(accelerator, model, optimizer, layout.current())
    with warnings.catch_warnings():
        # Its successor would send the buffers around once, and is not in the oldest torch.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
        prepared = accelerator.prepare(model, optimizer)
    return kind(accelerator, *prepared)


def placement_kind() -> Any:
    """The class of the placement for the set-up that the processes were launched with."""
    if layout.current().is_shared:
        from main.trainer.placement.sharded import Sharded

        return Sharded
    return DeepSpeed if uses_deepspeed() else Placement


def placement_name() -> str:
    """The kind of placement and how much it shares out: what rounds alike."""
    kind, shared = placement_kind().__name__, layout.current()
    if shared.is_shared:
        return f"{kind}{shared.tensor}{'full' if shared.full else ''}"
    if not uses_deepspeed():
        return kind
    given = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "")
    return f"{kind}{(ds_config.read() or {}).get('zero_optimization', {}).get('stage', given)}"
