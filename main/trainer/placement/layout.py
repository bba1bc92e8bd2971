"""How the launcher wants one copy of the model laid over several processes, beyond DeepSpeed.

Tensor parallelism is asked for by `tensor_model_parallel_size` in the DeepSpeed file, full sharding
beside it by stage 3; full sharding alone by `accelerate launch --use_fsdp --fsdp_version 2`.
DeepSpeed and accelerate's own FSDP take no part then: their switches are turned off.
"""

import logging
import os
from typing import Any, NamedTuple

from main.system.processes import launched_size, split_model, this_process, uses_deepspeed
from main.trainer.placement import ds_config

log = logging.getLogger(__name__)

_WRAP = "TRANSFORMER_BASED_WRAP"
_DEEPSPEED, _FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"


class Layout(NamedTuple):
    """One copy of the model on several processes.

    tensor: neighbouring processes that split every large matrix between them.
    full: the frozen weights are shared out over the copies, too (FSDP2).
    offload: frozen weights stay in the CPU's memory while they are not used.
    reshard: a layer's weights are given back between its forward and its backward pass.
    units: class names of the layers that get their weights together; None = decoder layers.
    """

    tensor: int = 1
    full: bool = False
    offload: bool = False
    reshard: bool = True
    units: tuple[str, ...] | None = None

    @property
    def is_shared(self) -> bool:
        return self.tensor > 1 or self.full


_current = Layout()


def current() -> Layout:
    """What `take_over` found."""
    return _current


def launch_problems() -> list[str]:
    """One sentence for everything in accelerate's FSDP settings that cannot work here."""
    if not _on(_FSDP):
        return []
    found = []
    if os.environ.get("FSDP_VERSION", "1") != "2":
        found.append(
            "FSDP version 1 flattens adapter and base into one tensor, whose adapter could not be "
            "saved. Launch with --fsdp_version 2 (fsdp_version: 2 in the file)."
        )
    if os.environ.get("FSDP_AUTO_WRAP_POLICY", _WRAP) not in (_WRAP, "NO_WRAP"):
        found.append(
            f"FSDP_AUTO_WRAP_POLICY={os.environ['FSDP_AUTO_WRAP_POLICY']} is not supported: use "
            f"{_WRAP}, which shares the weights out by decoder layers."
        )
    if _on("FSDP_ACTIVATION_CHECKPOINTING"):
        found.append(
            "FSDP's activation checkpointing is not used here. Switch it off, and give the trainer "
            "gradient_checkpointing=True."
        )
    if launched_size() == 1:
        found.append("FSDP shares weights out over processes, and there is one (--num_processes).")
    return found


def take_over() -> Layout:
    """Read the launcher's wishes, once a process, and turn its own switches off."""
    global _current
    if _on(_FSDP):
        _current = _of_accelerate()
    elif uses_deepspeed() and ds_config.tensor_size() > 1:
        _current = _of_file()
    else:
        return _current
    os.environ[_FSDP] = os.environ[_DEEPSPEED] = "false"
    split_model(_current.tensor)
    if this_process().is_main:
        log.warning("%s", _in_words(_current))
    return _current


def _of_file() -> Layout:
    """Stage 3 shares out over the copies what tensor parallelism leaves; with one there is none."""
    config = ds_config.read() or {}
    zero, size = config.get("zero_optimization", {}), ds_config.tensor_size()
    copies = launched_size() // size
    return Layout(
        tensor=size,
        full=zero.get("stage", 0) == 3 and copies > 1,
        offload=zero.get("offload_param", {}).get("device", "none") == "cpu",
    )


def _of_accelerate() -> Layout:
    names = os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP", "")
    return Layout(
        full=True,
        offload=_on("FSDP_OFFLOAD_PARAMS"),
        reshard=os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false",
        units=tuple(name.strip() for name in names.split(",") if name.strip()) or None,
    )


def _in_words(layout: Layout) -> str:
    """What was made of the launcher's wishes."""
    if layout.tensor == 1:
        return (
            f"FSDP2: the frozen weights are shared out over {this_process().size} processes, "
            f"each layer's {'freed again' if layout.reshard else 'kept'} after its forward pass; "
            "the adapter and its optimizer state are whole on each."
        )
    copies = this_process().size // layout.tensor
    text = (
        f"tensor_model_parallel_size={layout.tensor} of the DeepSpeed file: transformers' plan "
        f"splits the matrices over {layout.tensor} neighbouring processes, {copies} "
        f"{'copy' if copies == 1 else 'copies'} of the model in all. DeepSpeed takes no part: of "
        "its file the batch sizes, clipping, precision, stage and offload_param count."
    )
    if layout.full:
        return f"{text} Stage 3: FSDP2 shares the frozen weights out over the copies."
    return text


def _on(switch: str) -> bool:
    return os.environ.get(switch, "false").lower() == "true"


def problems(setup: Any, layout: Layout) -> list[str]:
    """One sentence for every argument of a trainer that a shared copy of the model excludes."""
    if not setup.quantization:
        return []
    what = f"quantization={setup.quantization!r}"
    if layout.tensor > 1:
        return [
            f"{what} does not go with tensor parallelism: packed weights cannot be cut along rows "
            "or columns. Load the model in bfloat16, or launch with FSDP2 or DDP."
        ]
    if layout.full and setup.quantization == "8bit":
        return [
            f"{what} does not go with FSDP2: bitsandbytes keeps 8-bit weights outside the "
            "parameters that FSDP2 shares out. Use '4bit', or launch without sharing out (DDP)."
        ]
    return []
