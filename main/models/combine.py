"""Several LoRA adapters of one base as a single one.

    sum_i w_i s_i B_i A_i = [w_1 s_1 B_1, w_2 s_2 B_2, ...] [A_1; A_2; ...]

Concatenation is exact for any ranks. Adding the A and the B matrices would not be: the product of
two sums has cross terms.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from main.errors import ConfigError, ModelError
from main.models.adapter_files import WEIGHTS, read_adapter
from main.models.lora import MUTATING_INIT

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


class Part(NamedTuple):
    """One adapter's share of a layer: B A, the scale already in B."""

    a: "torch.Tensor"  # (r, in)
    b: "torch.Tensor"  # (out, r)


def combine_adapters(paths: Sequence[Any], weights: Sequence[float], directory: Path) -> None:
    """Write to `directory` the adapter that acts as the weighted sum of those in `paths`.

    Its rank is the sum of the ranks and its scale 1. A layer that only some adapters have counts
    as zero in the others.

    Raises:
        ConfigError: not one weight for each adapter.
        ModelError: adapters that are not plain LoRA (DoRA, modules_to_save, ...), or of two bases.
    """
    from safetensors.torch import save_file

    if len(paths) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(paths)} adapters: give one for each.")
    read = [read_adapter(path) for path in paths]
    for path, (config, tensors) in zip(paths, read, strict=True):
        _refuse_unlike_lora(path, config, tensors)
    _check_one_base(paths, [config for config, _ in read])
    shares = [_parts(c, t, w) for (c, t), w in zip(read, weights, strict=True)]
    ranks = [max(len(part.a) for part in share.values()) for share in shares]
    combined: dict[str, torch.Tensor] = {}
    for a_name, b_name in dict.fromkeys(names for share in shares for names in share):
        parts = [share.get((a_name, b_name)) for share in shares]
        combined[a_name], combined[b_name] = _concatenate(parts, ranks)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(combined, directory / WEIGHTS, metadata={"format": "pt"})
    _plain_config(read[0][0], combined, sum(ranks)).save_pretrained(str(directory))


def _refuse_unlike_lora(path: Any, config: Any, tensors: dict[str, Any]) -> None:
    problems = {
        f"it is of type {config.peft_type}": config.peft_type != "LORA",
        "DoRA's magnitudes do not add up": getattr(config, "use_dora", False),
        "experts' factors do not stack": bool(getattr(config, "target_parameters", None)),
        "its modules_to_save are whole weights": getattr(config, "modules_to_save", None),
        "it starts from a changed base (PiSSA or OLoRA, not saved as plain LoRA)": (
            MUTATING_INIT.fullmatch(str(getattr(config, "init_lora_weights", "")))
        ),
        "it has tensors other than LoRA's A and B": not all(
            name.endswith(PAIRS[0] + PAIRS[1]) for name in tensors
        ),
    }
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ModelError(
            f"adapter '{path}' cannot be combined with others: {found[0]}. Merge it alone, then "
            "train the next one on the result."
        )


def _check_one_base(paths: Sequence[Any], configs: list[Any]) -> None:
    bases = [(c.auto_mapping or {}).get("base_model_class") for c in configs]
    if len({base for base in bases if base}) > 1:
        raise ModelError(
            "the adapters belong to different models: "
            f"{dict(zip(map(str, paths), bases, strict=True))}."
        )


def _parts(config: Any, tensors: dict[str, Any], weight: float) -> dict[tuple[str, str], Part]:
    """(name of A, name of B) -> both, B times the adapter's weight and scale."""
    found = {}
    for name, a in tensors.items():
        for a_end, b_end in PAIRS:
            if name.endswith(a_end):
                layer = name.removesuffix(a_end)
                scale = weight * _scale(config, layer, rank=len(a))
                b = tensors[layer + b_end].float() * scale
                found[name, layer + b_end] = Part(a.float(), b)
    return found


def _scale(config: Any, layer: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732), with the layer's own alpha."""
    from peft.utils.other import get_pattern_key

    patterns = config.alpha_pattern or {}
    key = get_pattern_key(list(patterns), layer.removeprefix(PREFIX))
    alpha = patterns.get(key, config.lora_alpha)
    return alpha / (rank**0.5 if config.use_rslora else rank)


def _concatenate(parts: list[Part | None], ranks: list[int]) -> "tuple[torch.Tensor, torch.Tensor]":
    """A (R, in) and B (out, R), zero where an adapter lacks the layer or has a lower rank."""
    import torch

    some = next(part for part in parts if part is not None)
    a = torch.zeros(sum(ranks), some.a.shape[1])
    b = torch.zeros(some.b.shape[0], sum(ranks))
    start = 0
    for part, rank in zip(parts, ranks, strict=True):
        if part is not None:
            if (part.a.shape[1], part.b.shape[0]) != (a.shape[1], b.shape[0]):
                raise ModelError(
                    f"the adapters were trained on layers of different sizes: {tuple(a.shape)} "
                    f"and {tuple(part.a.shape)}. Give adapters of one base model."
                )
            a[start : start + len(part.a)] = part.a
            b[:, start : start + len(part.a)] = part.b
        start += rank
    return a, b


def _plain_config(config: Any, tensors: dict[str, Any], rank: int) -> Any:
    layers = {name.removeprefix(PREFIX).partition(".lora_")[0] for name in tensors}
    return dataclasses.replace(
        config,
        r=rank,
        lora_alpha=rank,
        use_rslora=False,
        init_lora_weights=True,
        target_modules=sorted(layers),
        rank_pattern={},
        alpha_pattern={},
        layers_to_transform=None,
        layers_pattern=None,
        exclude_modules=None,
        inference_mode=True,
    )
