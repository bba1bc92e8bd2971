"""The DeepSpeed file of a run: checked, made to agree with the trainer, its "auto" filled in."""

import copy
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from main.errors import ConfigError, MissingFileError
from main.options import nearest, raise_all
from main.system.processes import launched_size

AUTO = "auto"
# What DeepSpeed 0.19 reads at the top of its file; it ignores every other key without a word.
KEYS = frozenset((
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps",
    "optimizer", "scheduler", "communication_data_type", "seq_parallel_communication_data_type",
    "prescale_gradients", "gradient_predivide_factor", "sparse_gradients", "fp16", "bf16", "amp",
    "torch_autocast", "gradient_clipping", "zero_optimization", "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer", "aio", "activation_checkpointing", "steps_per_print",
    "wall_clock_breakdown", "dump_state", "memory_breakdown", "flops_profiler", "comms_logger",
    "tensorboard", "wandb", "csv_monitor", "comet", "monitor_config", "checkpoint", "data_types",
    "disable_allgather", "graph_harvesting", "data_efficiency", "elasticity", "autotuning",
    "compression_training", "tensor_parallel", "compile", "use_node_local_storage",
))  # fmt: skip
# Keys of the user's guide, which DeepSpeed does not know; see main/trainer/placement/layout.py.
PARALLEL = ("tensor_model_parallel_size", "pipeline_model_parallel_size")


class Agreed(NamedTuple):
    """What the trainer was given, by the names that it has there."""

    batch_size: int
    gradient_accumulation_steps: int
    processes: int
    max_grad_norm: float
    bf16: bool
    fp16: bool


def read() -> dict[str, Any] | None:
    """The file that `accelerate launch` names; None without one.

    Raises:
        MissingFileError: it does not exist.
        ConfigError: it is not a JSON object.
    """
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return None
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"DeepSpeed config file '{path}' does not exist.") from None
    except ValueError as error:
        raise ConfigError(f"DeepSpeed config file '{path}' is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"DeepSpeed config file '{path}' must hold a JSON object.")
    return config


def problems(config: dict[str, Any]) -> list[str]:
    """One sentence for everything in the file that would be ignored or cannot work here."""
    found = [
        f"{name!r} is no key of a DeepSpeed file, and nothing would read it."
        f"{nearest(name, sorted(KEYS))} Remove it."
        for name in config
        if name not in KEYS and name not in PARALLEL
    ]
    tensor, pipeline = (config.get(name, 1) for name in PARALLEL)
    if pipeline != 1:
        found.append(
            f"pipeline_model_parallel_size={pipeline!r}: pipelines are not supported. Set it to 1; "
            "tensor_model_parallel_size and ZeRO stage 3 share the weights out instead."
        )
    if type(tensor) is not int or tensor < 1:
        found.append(f"tensor_model_parallel_size={tensor!r} must be a whole number from 1.")
    elif launched_size() % tensor:
        found.append(
            f"tensor_model_parallel_size={tensor} does not divide this run's number of processes, "
            f"{launched_size()}. Launch a multiple of "
            f"{tensor} (--num_processes), or set it to 1."
        )
    if "optimizer" in config or "scheduler" in config:
        found.append(
            "'optimizer' and 'scheduler' come from the trainer's lr, weight_decay, warmup_ratio "
            "and lr_scheduler_type. Remove them from the file."
        )
    return found


def check() -> list[str]:
    """Problems of the settings that this process was launched with."""
    config = read()
    found = problems(config) if config else []
    return [f"DeepSpeed config: {text}" for text in found]


def tensor_size() -> int:
    """Processes that are to split the model's matrices; 1 without a file."""
    return (read() or {}).get("tensor_model_parallel_size", 1)


def agree(config: dict[str, Any], given: Agreed) -> dict[str, Any]:
    """A copy of the file with "auto" and what is missing filled in from the trainer.

    Raises:
        ConfigError: the file and the trainer disagree; both values are shown.
    """
    config = copy.deepcopy(config)
    for name in PARALLEL:
        config.pop(name, None)
    clipping = given.max_grad_norm
    rows = given.batch_size * given.gradient_accumulation_steps * given.processes
    wanted = {
        "train_micro_batch_size_per_gpu": (given.batch_size, "batch_size"),
        "gradient_accumulation_steps": (
            given.gradient_accumulation_steps,
            "gradient_accumulation_steps",
        ),
        "train_batch_size": (rows, "batch_size x gradient_accumulation_steps x processes"),
        "gradient_clipping": (clipping, "max_grad_norm"),
    }
    found = []
    for key, (value, name) in wanted.items():
        if config.setdefault(key, AUTO) == AUTO:
            config[key] = value
        elif config[key] != value:
            found.append(
                f"DeepSpeed config: {key}={config[key]} and the trainer's {name}={value} "
                f'disagree. Change one of them, or write {key!r}: "auto".'
            )
    for kind, other in (("bf16", given.bf16), ("fp16", given.fp16)):
        found += _agree_on_precision(config, kind, other)
    if config["bf16"]["enabled"] and config["fp16"]["enabled"]:
        found.append("DeepSpeed config and trainer together ask for bf16 and for fp16: choose one.")
    raise_all(found)
    config["zero_allow_untested_optimizer"] = True  # DeepSpeed's word for torch's AdamW
    return config


def _agree_on_precision(config: dict[str, Any], kind: str, wanted: bool) -> list[str]:
    """The file may switch on what the trainer was not asked for, but not off."""
    section = config.setdefault(kind, {"enabled": AUTO})
    if section.get("enabled", AUTO) == AUTO:
        section["enabled"] = wanted
    elif wanted and not section["enabled"]:
        return [
            f"DeepSpeed config: {kind}.enabled=false and the trainer's {kind}=True disagree. "
            'Change one of them, or write "enabled": "auto".'
        ]
    return []
