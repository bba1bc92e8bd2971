"""What a model with an adapter is, by content: neither where it came from nor where it lies."""

import hashlib
from typing import Any

from main.models.adapters import ADAPTER
from main.models.training_record import configuration, plain, spread_sample

# Of an adapter's configuration: where it lies, how its start was made, or what the names and shapes
# of its weights say better. The dropout is the one in force.
_INCIDENTAL = (
    *("peft_type", "peft_version", "task_type", "base_model_name_or_path", "revision"),
    *("auto_mapping", "inference_mode", "runtime_config", "init_lora_weights", "lora_dropout"),
    *("target_modules", "target_parameters", "exclude_modules", "ensure_weight_tying"),
    *("low_cpu_mem_usage", "eva_config", "corda_config", "loftq_config", "lora_ga_config"),
)
_NAMES = {"r": "lora_r"}  # as the trainers call them


def base_content(policy: Any) -> str:
    """Digest of the configuration and of each of the base's tensors as it computes here.

    Name, dtype, shape and a spread sample of the values; the adapters' own are left out.
    """
    digest = hashlib.sha256(configuration(policy.get_base_model()).encode())
    for name, tensor in policy.named_parameters():
        if not of_an_adapter(policy, name):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(values(spread_sample(tensor)))
    return digest.hexdigest()


def base_dtypes(policy: Any) -> str:
    """The dtypes of the base's tensors, e.g. 'bfloat16 and float32'."""
    named = policy.named_parameters()
    found = {p.dtype for name, p in named if not of_an_adapter(policy, name)}
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))


def adapter_content(policy: Any) -> dict[str, Any]:
    """What shapes an adapter's numbers beside the values of its weights, by name."""
    config = policy.peft_config[ADAPTER].to_dict()
    found = {_NAMES.get(n, n): plain(v) for n, v in config.items() if v and n not in _INCIDENTAL}
    named = [(n, p) for n, p in policy.named_parameters() if of_an_adapter(policy, n, ADAPTER)]
    shapes = sorted(f"{name} {tuple(p.shape)}" for name, p in named)
    digest = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:12]
    return found | {
        "lora_dropout": sorted({m.p for m in _dropouts(policy)}) or [0.0],
        "adapter's weights": f"{sum(p.numel() for _, p in named):,} in {len(named)} ({digest})",
    }


def of_an_adapter(policy: Any, parameter: str, adapter: str | None = None) -> bool:
    """Whether a parameter is one of this adapter's; by default of any."""
    names = policy.peft_config if adapter is None else [adapter]
    return any(f".{name}." in f"{parameter}." for name in names)


def values(tensor: Any) -> bytes:
    """The bytes of a tensor of any dtype."""
    import torch

    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _dropouts(policy: Any) -> list[Any]:
    """Of the trained adapter, but for those that do nothing."""
    modules = policy.named_modules()
    return [
        m for name, m in modules if name.endswith(f"lora_dropout.{ADAPTER}") and hasattr(m, "p")
    ]
