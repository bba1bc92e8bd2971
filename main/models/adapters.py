"""LoRA adapters on a base model: add, load, save."""

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.errors import ModelError
from main.models.adaptable import out_of_reach
from main.models.adapter_files import adapter_folder, write_adapter
from main.models.adapter_fit import (
    check_architecture,
    check_complete,
    check_tensors,
    misfit,
    read_for,
    refuse_prompts,
)
from main.models.harmless import check_ranks
from main.models.lora import (
    LoraOptions,
    check_modules,
    describe_targets,
    mutates_base,
    peft_config,
)
from main.models.vocabulary import brought_weights, embedding_keys, fit_vocabulary
from main.options import raise_all

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

ADAPTER = "default"


def add_adapter(model: "PreTrainedModel", options: LoraOptions) -> "PeftModel":
    """A new adapter on `model`: its weights trainable in float32, the base frozen.

    The mode (train or eval) stays as it was. PiSSA and OLoRA take their start out of the base
    weights; `save_adapter` undoes that, so that the file fits the original base.

    Raises:
        ConfigError: a value of `options` that cannot work.
        ModelError: an adapter is there already, or a module named does not exist.
    """
    from peft import get_peft_model

    from main.models.fused import fuse

    raise_all(options.problems())
    _refuse_second(model)
    check_modules(model, options)
    if mutates_base(options.init_lora_weights) and getattr(model, "is_quantized", False):
        raise ModelError(
            f"init_lora_weights={options.init_lora_weights!r} rewrites the base weights, which "
            "are quantized here. Use init_lora_weights=True, or load without quantization."
        )
    config = peft_config(model, options)
    try:
        with _expert_ranks_are_known():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        first = str(error).splitlines()[0]
        raise ModelError(f"{type(model).__name__} takes no such adapter: {first}") from error
    beyond = out_of_reach(model) if options.target_modules == "all-linear" else set()
    log.log(
        logging.WARNING if config.target_parameters or beyond else logging.INFO,
        "%s%s.",
        describe_targets(config, adapted),
        f"; none on {', '.join(sorted(beyond))}, which it would not change" if beyond else "",
    )
    _train_in_float32(adapted, model.dtype)
    if mutates_base(options.init_lora_weights):
        adapted.initial_adapter = {  # type: ignore[assignment]
            k: v.clone() for k, v in adapter_tensors(adapted).items()
        }
    fuse(adapted)
    return adapted.train(model.training)


@contextmanager
def _expert_ranks_are_known() -> Iterator[None]:
    """peft looks for the ranks of experts among layers, and warns; it uses them all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The following rank_pattern keys did not match")
        yield


def load_adapter(
    model: "PreTrainedModel", path: str | os.PathLike[str], trainable: bool = False
) -> "PeftModel":
    """The adapter of folder `path` on `model`; every tensor of it and nothing else is loaded.

    As peft loads it: embeddings in the file become the base's, which is resized where they are of
    another vocabulary. They stay in what `save_adapter` writes.

    Args:
        trainable: True leaves exactly the adapter's weights trainable, in float32; False freezes
            everything.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
        ModelError: an adapter is there already; this one belongs to another base, or is made of
            virtual tokens.
    """
    from peft import set_peft_model_state_dict

    folder = adapter_folder(path)
    config, tensors = read_for(model, path)
    config.inference_mode = not trainable
    adapted = _with_places(model, config, tensors, folder)
    set_peft_model_state_dict(adapted, tensors)
    if trainable:
        _train_in_float32(adapted, model.dtype)
    return adapted.train(model.training)


def check_adapter(model: "PreTrainedModel", path: str | os.PathLike[str]) -> None:
    """Raise what `load_adapter` would; `model` stays as it is, and may lie on the meta device."""
    _with_places(model, *read_for(model, path), adapter_folder(path)).unload()


def _with_places(
    model: "PreTrainedModel", config: Any, tensors: "dict[str, torch.Tensor]", folder: Path
) -> "PeftModel":
    """`model` with an adapter of this configuration, if `tensors` are exactly its weights."""
    from peft import get_peft_model

    from main.models.fused import fuse

    _refuse_second(model)
    refuse_prompts(config, folder)
    check_ranks(config, tensors, folder)
    check_architecture(model, config, folder)
    fit_vocabulary(model, config, tensors, misfit(folder, model))
    in_base = embedding_keys(model)
    try:
        with _expert_ranks_are_known():
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"{misfit(folder, model)}: {str(error).splitlines()[0]}") from error
    try:
        adapted.brought = brought_weights(in_base, adapter_tensors(adapted), tensors)  # type: ignore[assignment]
        check_tensors(adapter_tensors(adapted), tensors, misfit(folder, model))
    except ModelError:
        adapted.unload()
        raise
    fuse(adapted)
    return adapted


def save_adapter(
    model: "PeftModel",
    directory: str | os.PathLike[str],
    *,
    state_dict: "Mapping[str, torch.Tensor] | None" = None,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` that fit the original base.

    Args:
        model: as `add_adapter` or `load_adapter` made it; may be wrapped for several processes.
        directory: made when it does not exist.
        state_dict: gathered weights when the model's own are sharded (ZeRO-3, FSDP).

    Raises:
        ModelError: `state_dict` lacks adapter weights, has foreign ones, or empty (sharded) ones.
    """
    from accelerate.utils import extract_model_from_parallel

    model = extract_model_from_parallel(model)
    tensors = adapter_tensors(model, state_dict)
    check_complete(adapter_tensors(model), tensors)
    config: Any = copy.deepcopy(model.peft_config[ADAPTER])
    if getattr(model, "initial_adapter", None):
        tensors, config = _as_plain_lora(tensors, model.initial_adapter, config)
    config.inference_mode = True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)
    if config.target_parameters:
        config.target_parameters = sorted(config.target_parameters)
    write_adapter(Path(directory), config, tensors)


def _refuse_second(model: "PreTrainedModel") -> None:
    if getattr(model, "peft_config", None):
        raise ModelError(
            "the model carries an adapter already, and a second one would be stacked on it. "
            "Load the base model anew, or merge the first adapter into it."
        )


def _train_in_float32(adapted: "PeftModel", base_dtype: "torch.dtype") -> None:
    """Small steps vanish in half precision, so what is trained is float32.

    A module trained whole (modules_to_save) then takes and returns the base's dtype.
    """
    from peft.utils import ModulesToSaveWrapper

    _keep_four_bit_layout(adapted)

    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            _keep_outer_dtype(module.modules_to_save[ADAPTER], base_dtype)


def _keep_four_bit_layout(model: "PeftModel") -> None:
    """Stop bitsandbytes from repacking 4-bit weights for a CPU's inference kernels.

    That rounds their scales to bfloat16, and the steps after an evaluation would go on with those.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _keep_outer_dtype(module: "torch.nn.Module", dtype: "torch.dtype") -> None:
    def enter(module: "torch.nn.Module", inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.float() if x.is_floating_point() else x for x in inputs)

    def leave(module: "torch.nn.Module", inputs: tuple[Any, ...], output: Any) -> Any:
        return output.to(dtype)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave)


def adapter_tensors(
    model: "PeftModel",
    state_dict: "Mapping[str, torch.Tensor] | None" = None,
    adapter: str = ADAPTER,
) -> "dict[str, torch.Tensor]":
    """An adapter's tensors, and base weights that it brought, by the names they have in a file."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(
        model, state_dict=state_dict, adapter_name=adapter, save_embedding_layers=False
    )
    brought: Any = getattr(model, "brought", [])
    weights = model.state_dict() if brought and state_dict is None else state_dict or {}
    return tensors | {name: weights[name] for name in brought if name in weights}


def _as_plain_lora(
    tensors: "dict[str, torch.Tensor]", initial: "dict[str, torch.Tensor]", config: "LoraConfig"
) -> "tuple[dict[str, torch.Tensor], LoraConfig]":
    """An adapter of rank 2r on the original base that equals the one of rank r on the residual.

    PiSSA trains (A, B) on W_res = W - s B0 A0, and W_res + s B A = W + s [B, -B0] [A; A0]
    (arXiv 2404.02948, appendix on sharing adapters). The scale s = alpha / r (rsLoRA:
    alpha / sqrt(r)) stays the same.
    """
    import torch

    plain = dict(tensors)
    for name, tensor in tensors.items():
        start = initial[name].to(tensor)
        if ".lora_A." in name:
            plain[name] = torch.cat([tensor, start], dim=0)  # (r, in) -> (2r, in)
        elif ".lora_B." in name:
            plain[name] = torch.cat([tensor, -start], dim=1)  # (out, r) -> (out, 2r)
    config.r *= 2
    config.lora_alpha *= 2**0.5 if config.use_rslora else 2  # type: ignore[assignment]
    config.init_lora_weights = True
    return plain, config
