"""The experts of a mixture, whose weights are parameters (E, ., .) and no linear layers.

peft adapts them by `target_parameters`. A token meets k of the E experts, so that a rank of
r // k in each costs it as much as rank r in a plain layer.
"""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")


def expert_parameters(model: "PreTrainedModel", inside: str = "") -> list[str]:
    """Names below a layer ('mlp.experts.gate_up_proj') of all experts' weights, in their order.

    inside: beginning of the modules looked at, see `main.models.lora`.
    """
    count = _setting(model, COUNTS)
    if count is None:
        return []
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        if not f"{name}.".startswith(inside) or type(module).__module__.startswith("torch.nn"):
            continue
        for parameter, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3 and len(weight) == count:
                found[within_layer(f"{name}.{parameter}")] = None
    return list(found)


def within_layer(name: str) -> str:
    """The part of a name below the last numbered layer."""
    return re.sub(r".*\.\d+\.", "", name)


def taken_for_experts(model: "PreTrainedModel", targets: str | list[str]) -> set[str]:
    """Which names of layers peft takes for experts' ones of transformers 4.

    It adapts experts in their place, and the dense and shared layers of that name stay bare.
    """
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    if isinstance(targets, str):
        return set()
    probe = LoraConfig(target_modules=list(targets))
    try:
        convert_peft_config_for_transformers(probe, model, None)
    except ValueError:  # a part of what experts fuse: peft's own refusal follows
        return set()
    return set(targets) - set(probe.target_modules or [])


def expert_rank(model: "PreTrainedModel", rank: int) -> int:
    """A layer's rank shared out among the experts that a token meets, at least 1."""
    return max(1, rank // (_setting(model, CHOSEN) or 1))


def chosen_share(model: "PreTrainedModel") -> float:
    """Of a mixture's experts the share that a token meets; 1 for other models."""
    count, chosen = _setting(model, COUNTS), _setting(model, CHOSEN)
    return min(1.0, (chosen or 1) / count) if count else 1.0


def _setting(model: Any, names: tuple[str, ...]) -> int | None:
    config = model.config.get_text_config()
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
