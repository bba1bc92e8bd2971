"""Tensor parallelism: every large matrix of a model split between neighbouring processes.

Megatron-LM's scheme (arXiv 1909.08053, section 3) by transformers' plan for the model: a layer
split by its outputs ('colwise') is followed by one split by its inputs ('rowwise'), whose partial
results are added up over the processes. The adapter is split with its layer:

    colwise, W (out/n, in):  A (r, in), B (out/n, r)
    rowwise, W (out, in/n):  A (r, in/n), B (out, r)

What the plan leaves alone (norms), and what is trained whole, every process has.
"""

from typing import Any

from torch import Tensor, nn

_SPLIT = ("colwise", "rowwise")
_EMBEDDING, _HEAD = "embedding_rowwise", ("colwise_gather_output", "colwise_rep")
# Layers that take and give whole tensors: left whole, since an adapter on them cannot be split.
_CLOSED = (*_HEAD, "rowwise_split_input", "rowwise_rep", _EMBEDDING)
# A norm between split layers; its gradient alone would need care, and it is frozen.
_FROZEN = ("replicated_with_grad_allreduce",)


def plan_of(model: Any) -> dict[str, str]:
    """Module name -> how transformers splits it; '*' stands for a layer's number."""
    from transformers.distributed.tensor_parallel import replace_layer_number_by_wildcard

    plan: dict[str, str] = dict(model.tp_plan)
    found = {}
    for name, module in model.named_modules():
        style = plan.get(replace_layer_number_by_wildcard(name))
        if style is not None and not isinstance(module, nn.Identity):
            found[name] = style
    return found


def problems(model: Any, size: int) -> list[str]:
    """One sentence for everything that keeps `size` processes from splitting a transformers model.

    Args:
        model: whole, with its adapter.
    """
    kind, plan = type(model).__name__, plan_of(model)
    if not set(_SPLIT) <= set(plan.values()):
        return [
            f"tensor_model_parallel_size={size}: transformers has no plan to split a {kind}. "
            "Set it to 1; ZeRO stage 3 shares the weights out instead."
        ]
    unknown = sorted(set(plan.values()) - {*_SPLIT, *_CLOSED, *_FROZEN})
    if unknown:
        return [
            f"tensor_model_parallel_size={size}: the plan of a {kind} has {unknown} (experts or "
            "fused layers), which adapters cannot follow. Set it to 1; ZeRO stage 3 shares the "
            "weights out instead."
        ]
    whole = [
        n for n, s in plan.items() if s in _SPLIT and not _can_be_split(model.get_submodule(n))
    ]
    if whole:
        return [
            f"tensor_model_parallel_size={size}: '{whole[0]}' is trained whole (modules_to_save) "
            "or with DoRA, which needs the norms of its whole matrix. Train it with plain LoRA, or "
            "set the size to 1."
        ]
    config = model.config.get_text_config()
    sizes = {
        name: getattr(config, name, None)
        for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    }
    return [
        f"tensor_model_parallel_size={size} does not divide the {kind}'s {name}={value}. Use a "
        "size that divides all of "
        f"{', '.join(f'{name}={value}' for name, value in sizes.items() if value)}."
        for name, value in sizes.items()
        if value and value % size
    ]


def _can_be_split(layer: Any) -> bool:
    plain = type(getattr(layer, "base_layer", layer)) is nn.Linear
    return plain and not any(getattr(layer, "use_dora", {}).values())


def split(model: nn.Module, causal_lm: Any, mesh: Any) -> None:
    """Keep this process's part of every matrix in the plan, on the mesh's device.

    Args:
        model: with its adapters, whole and alike on every process.
        causal_lm: the transformers model inside.
        mesh: of the processes that split the model, one dimension.
    """
    for name, style in plan_of(causal_lm).items():
        if style in _SPLIT:
            _split_layer(causal_lm.get_submodule(name), style, mesh)
    _split_vocabulary(causal_lm, mesh)


def _split_layer(layer: nn.Module, style: str, mesh: Any) -> None:
    """A linear layer, and the half of its adapters that meets the split dimension."""
    base = getattr(layer, "base_layer", layer)
    _apply(base, style, mesh)
    adapters: Any = getattr(layer, "lora_B" if style == "colwise" else "lora_A", {})
    for matrix in adapters.values():
        _apply(matrix, style, mesh)


def _split_vocabulary(causal_lm: Any, mesh: Any) -> None:
    """The output layer by its rows, and with it an embedding that has the same weights."""
    head, embedding = causal_lm.get_output_embeddings(), causal_lm.get_input_embeddings()
    plan = set(plan_of(causal_lm).values())
    plain = type(head) is nn.Linear and type(embedding) is nn.Embedding
    if not plain or head.out_features % mesh.size() or not plan & set(_HEAD):
        return
    tied = head.weight is embedding.weight
    if head.weight.requires_grad or (tied and _EMBEDDING not in plan):
        return
    _apply(head, _HEAD[0], mesh)
    if tied:
        _apply(embedding, _EMBEDDING, mesh)
        embedding.weight = head.weight  # both are split by rows


def _apply(module: nn.Module, style: str, mesh: Any) -> None:
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    how: Any = ALL_PARALLEL_STYLES[style]
    for name, _ in list(module.named_parameters(recurse=False)):
        how.shard_param(module, name, mesh)
    how.install_forward(module, mesh)


def is_split(tensor: Tensor) -> bool:
    """Whether other processes have other parts of it."""
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor) and not all(p.is_replicate() for p in tensor.placements)


def local_part(tensor: Tensor) -> Tensor:
    """The part that lies here; the tensor itself if it is not split."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def joined(tensor: Tensor) -> Tensor:
    """The whole tensor. All processes that split it must call this."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def part_like(whole: Tensor, split_one: Any) -> Tensor:
    """This process's part of `whole`, laid out as `split_one`; `whole` itself if that is whole."""
    if not is_split(split_one):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placements = split_one.placements
    return distribute_tensor(whole, split_one.device_mesh, placements, src_data_rank=None)
