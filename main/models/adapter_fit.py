"""Whether an adapter fits a base: architecture, vocabulary, tensors."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import ModelError
from main.models.adapter_files import read_adapter
from main.models.families import family_of
from main.models.lora import LoraOptions, peft_config
from main.models.patterns import check_patterns
from main.models.vocabulary import without_doubles

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def read_for(
    model: "PreTrainedModel", path: str | os.PathLike[str]
) -> "tuple[Any, dict[str, torch.Tensor]]":
    """As `read_adapter`; an original adapter of its family under transformers' names."""
    config, tensors = read_adapter(path)
    check_patterns(config, model, Path(path))
    original = family_of(model.config).original
    if original and original.is_adapter(tensors):
        return original.adapter(config, tensors, model.config)
    return config, without_doubles(model, config, tensors)


def misfit(folder: Path, model: "PreTrainedModel") -> str:
    return f"adapter '{folder}' does not fit {type(model).__name__} '{model.name_or_path}'"


def refuse_prompts(config: Any, folder: Path) -> None:
    """Virtual tokens are no change of a layer: neither training nor decoding here knows them."""
    if config.is_prompt_learning:
        raise ModelError(
            f"adapter '{folder}' is {config.peft_type.value.lower().replace('_', ' ')}, which puts "
            "virtual tokens before every prompt; that is not built here. Use peft with "
            "transformers' generate, or train a LoRA adapter."
        )


def check_architecture(model: "PreTrainedModel", config: Any, folder: Path) -> None:
    trained_on = (config.auto_mapping or {}).get("base_model_class")
    if trained_on and trained_on not in (base.__name__ for base in type(model).__mro__):
        raise ModelError(
            f"{misfit(folder, model)}: it was trained on {trained_on} "
            f"'{config.base_model_name_or_path}'. Load that model."
        )


def check_tensors(
    expected: "dict[str, torch.Tensor]", given: "dict[str, torch.Tensor]", where: str
) -> None:
    """Every tensor has its place, and every place its tensor, of its shape."""
    problems = _key_problems(expected, given)
    shapes = [k for k in expected if k in given and expected[k].shape != given[k].shape]
    if shapes:
        name = shapes[0]
        problems.append(
            f"{len(shapes)} tensors of another shape, e.g. '{name}' is "
            f"{tuple(given[name].shape)} in the file and {tuple(expected[name].shape)} here"
        )
    if problems:
        raise ModelError(f"{where}: {'; '.join(problems)}. Load the base it was trained on.")


def check_complete(expected: "dict[str, torch.Tensor]", given: "dict[str, torch.Tensor]") -> None:
    problems = _key_problems(expected, given)
    empty = [name for name, tensor in given.items() if tensor.numel() == 0]
    if empty:
        problems.append(
            f"{len(empty)} tensors are empty (sharded, not gathered), e.g. '{empty[0]}'"
        )
    if problems:
        raise ModelError(f"the adapter cannot be saved: {'; '.join(problems)}.")


def _key_problems(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    missing = [k for k in expected if k not in given]
    unexpected = [k for k in given if k not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, e.g. '{missing[0]}'")
    if unexpected:
        problems.append(f"{len(unexpected)} tensors have no place, e.g. '{unexpected[0]}'")
    return problems


def contradictions(
    model: "PreTrainedModel",
    path: str | os.PathLike[str],
    options: LoraOptions,
    given: Collection[str],
) -> list[str]:
    """One sentence for each option in `given` that the adapter of folder `path` has otherwise."""
    config, _ = read_for(model, path)
    names = {"lora_r": "r"}
    found: dict[str, tuple[Any, ...]] = {
        name: (getattr(options, name), getattr(config, names.get(name, name), None))
        for name in sorted(given)
    }
    for name in found.keys() & {"modules_to_save", "target_modules"}:
        found[name] = tuple(p if isinstance(p, str) else sorted(p or []) for p in found[name])
    wanted_config = peft_config(model, options)
    if _layers(model, wanted_config) == _layers(model, config):
        found.pop("target_modules", None)
    return [
        f"{name}={wanted!r} is not what the adapter of resume_path='{path}' has: {there!r}. Leave "
        "it out, or train a new adapter without resume_path."
        for name, (wanted, there) in found.items()
        if wanted != there
    ]


def _layers(model: "PreTrainedModel", config: Any) -> Any:
    """What an adapter of this configuration is put on."""
    from peft.tuners.tuners_utils import check_target_module_exists

    if config.target_modules == "all-linear":
        return config.target_modules
    names = [name for name, _ in model.named_modules()]
    modules = {name for name in names if check_target_module_exists(config, name)}
    return modules, set(config.target_parameters or [])
