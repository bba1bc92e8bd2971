"""What the launcher asked for: checked, agreed with the trainer's arguments, made an engine."""

import importlib.util
import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from main.errors import ConfigError, MissingExtraError, TrainingError
from main.trainer import ds_config, layout
from main.trainer.arguments import LoopOptions
from main.trainer.engine import Engine, is_shared_out
from main.trainer.task import Task
from main.trainer.zero import DeepSpeed
from main.utils.processes import join, launched, share, uses_deepspeed

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
