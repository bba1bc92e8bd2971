"""LoRA adapters on a base model: add, load, save. Public through `main.models`."""

import copy
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from main.chatglm.adapter import is_original, translate
from main.errors import MissingFileError, ModelError
from main.options import nearest, raise_all

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
CONFIG = "adapter_config.json"
MUTATING_INIT = re.compile(r"pissa(_niter_\d+)?|olora")
ADAPTER = "default"


@dataclass
class LoraOptions:
    """What adapter to put on a model.

    LoRA: arXiv 2106.09685; rsLoRA scales by alpha / sqrt(r): 2312.03732; DoRA trains magnitude
    and direction apart: 2402.09353; PiSSA starts from the principal components: 2404.02948.

    lora_r, lora_alpha, lora_dropout: rank, scale (alpha / r), dropout before the adapter.
    target_modules: 'all-linear' (without the output layer; of a vision-language model the language
        part alone, so that its vision tower stays as it is), layer names, or one regular
        expression over full module names.
    init_lora_weights: True (B = 0), 'gaussian', 'pissa', 'pissa_niter_<n>', 'olora', or False.
    modules_to_save: modules trained whole and kept in the adapter, e.g. ['lm_head'].
    """

    lora_r: int = 16
    lora_alpha: int | float = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.lora_r < 1:
            found.append(f"lora_r={self.lora_r} must be >= 1; 8 to 64 are usual.")
        if self.lora_alpha <= 0:
            found.append(f"lora_alpha={self.lora_alpha} must be > 0; twice lora_r is usual.")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"lora_dropout={self.lora_dropout} must be in [0, 1).")
        if not self.target_modules:
            found.append("target_modules is empty; give 'all-linear' or names of layers.")
        init = self.init_lora_weights
        if isinstance(init, str) and init != "gaussian" and not MUTATING_INIT.fullmatch(init):
            found.append(
                f"init_lora_weights={init!r} must be True, False, 'gaussian', 'pissa', "
                "'pissa_niter_<n>' or 'olora'."
            )
        return found


def add_adapter(model: "PreTrainedModel", options: LoraOptions) -> "PeftModel":
    """A new adapter on `model`: its weights trainable in float32, the base frozen.

    The mode (train or eval) stays as it was. PiSSA and OLoRA take their start out of the base
    weights; `save_adapter` undoes that, so that the file fits the original base.

    Raises:
        ConfigError: a value of `options` that cannot work.
        ModelError: an adapter is there already, or a module named does not exist.
    """
    from peft import get_peft_model

    from main.fused import fuse

    raise_all(options.problems())
    _refuse_second(model)
    _check_modules(model, options)
    if _mutates(options.init_lora_weights) and getattr(model, "is_quantized", False):
        raise ModelError(
            f"init_lora_weights={options.init_lora_weights!r} rewrites the base weights, which "
            "are quantized here. Use init_lora_weights=True, or load without quantization."
        )
    adapted = get_peft_model(model, _peft_config(model, options))
    _train_in_float32(adapted, model.dtype)
    if _mutates(options.init_lora_weights):
        adapted.initial_adapter = {  # type: ignore[assignment]
            k: v.clone() for k, v in adapter_tensors(adapted).items()
        }
    fuse(adapted)
    return adapted.train(model.training)


def load_adapter(
    model: "PreTrainedModel", path: str | os.PathLike[str], trainable: bool = False
) -> "PeftModel":
    """The adapter of folder `path` on `model`; every tensor of it and nothing else is loaded.

    Args:
        trainable: True leaves exactly the adapter's weights trainable, in float32; False freezes
            everything.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
        ModelError: an adapter is there already; or this one belongs to another base.
    """
    from peft import set_peft_model_state_dict

    folder = _adapter_folder(path)
    config, tensors = _read_for(model, path)
    config.inference_mode = not trainable
    adapted = _with_places(model, config, tensors, folder)
    set_peft_model_state_dict(adapted, tensors)
    if trainable:
        _train_in_float32(adapted, model.dtype)
    return adapted.train(model.training)


def check_adapter(model: "PreTrainedModel", path: str | os.PathLike[str]) -> None:
    """Raise what `load_adapter` would; `model` stays as it is, and may lie on the meta device."""
    _with_places(model, *_read_for(model, path), _adapter_folder(path)).unload()


def _with_places(
    model: "PreTrainedModel", config: Any, tensors: "dict[str, torch.Tensor]", folder: Path
) -> "PeftModel":
    """`model` with an adapter of this configuration, if `tensors` are exactly its weights."""
    from peft import get_peft_model

    from main.fused import fuse

    _refuse_second(model)
    _check_architecture(model, config, folder)
    _fit_vocabulary(model, tensors, _pair(folder, model))
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"{_pair(folder, model)}: {str(error).splitlines()[0]}") from error
    try:
        _check_tensors(adapter_tensors(adapted), tensors, _pair(folder, model))
    except ModelError:
        adapted.unload()
        raise
    fuse(adapted)
    return adapted


def read_adapter(path: str | os.PathLike[str]) -> "tuple[Any, dict[str, torch.Tensor]]":
    """Configuration and tensors of an adapter folder, as its files have them.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
        ModelError: damaged weights.
    """
    return adapter_config(path), _read(_adapter_folder(path))


def _read_for(
    model: "PreTrainedModel", path: str | os.PathLike[str]
) -> "tuple[Any, dict[str, torch.Tensor]]":
    """As `read_adapter`; one of ChatGLM's original code under the names of Glm's layers."""
    config, tensors = read_adapter(path)
    if model.config.model_type == "glm" and is_original(tensors):
        return translate(config, tensors, model.config)
    return config, tensors


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
    from safetensors.torch import save_file

    model = extract_model_from_parallel(model)
    tensors = adapter_tensors(model, state_dict)
    _check_complete(adapter_tensors(model), tensors)
    config: Any = copy.deepcopy(model.peft_config[ADAPTER])
    if getattr(model, "initial_adapter", None):
        tensors, config = _as_plain_lora(tensors, model.initial_adapter, config)
    config.inference_mode = True
    if not isinstance(config.target_modules, str):
        config.target_modules = sorted(config.target_modules)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses two names for one storage
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _peft_config(model: "PreTrainedModel", options: LoraOptions) -> "LoraConfig":
    from peft import LoraConfig

    targets: str | list[str] = options.target_modules
    if targets == "all-linear":
        targets = _all_linear(model, options.modules_to_save or [])
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=options.lora_dropout,
        target_modules=[targets] if _is_layer_name(targets) else targets,  # type: ignore[list-item]
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        init_lora_weights=options.init_lora_weights,  # type: ignore[arg-type]
        modules_to_save=options.modules_to_save,
        auto_mapping={
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
    )


def _all_linear(model: "PreTrainedModel", trained_whole: list[str]) -> str | list[str]:
    """Layer names ('q_proj', ...) of every linear layer but the output layer.

    peft would list each full name, and such a file loads on a deeper model without a word: its
    further layers stay bare. Where a short name also means another kind of module, peft decides.
    """
    output = model.get_output_embeddings()
    inside = _language_part(model)
    linear = {n for n, m in _linear_modules(model) if m is not output and n.startswith(inside)}
    linear = {n for n in linear if not any(f".{n}.".find(f".{w}.") >= 0 for w in trained_whole)}
    short = {name.rpartition(".")[2] for name in linear}
    matched = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in short}
    if matched != linear and inside:
        return f"{re.escape(inside)}(.+\\.)?({'|'.join(sorted(short))})"
    return sorted(short) if matched == linear else "all-linear"


def _language_part(model: "PreTrainedModel") -> str:
    """Prefix of the modules of the language model beside a vision tower; '' where all is one."""
    if not hasattr(model.config, "vision_config"):
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, m in model.named_modules() if m is decoder and name), "")


def _is_layer_name(targets: str | list[str]) -> bool:
    """A plain name such as 'q_proj', which as a regular expression would match no full name."""
    return (
        isinstance(targets, str)
        and targets != "all-linear"
        and bool(re.fullmatch(r"[\w.]+", targets))
    )


def starts_as_base(options: LoraOptions) -> bool:
    """Whether a new adapter of this kind leaves the model's output as it is (B = 0)."""
    return options.init_lora_weights in (True, "gaussian")


def _mutates(init: bool | str) -> bool:
    return isinstance(init, str) and bool(MUTATING_INIT.fullmatch(init))


def _refuse_second(model: "PreTrainedModel") -> None:
    if getattr(model, "peft_config", None):
        raise ModelError(
            "the model carries an adapter already, and a second one would be stacked on it. "
            "Load the base model anew, or merge the first adapter into it."
        )


def _check_modules(model: "PreTrainedModel", options: LoraOptions) -> None:
    """Every name in target_modules and modules_to_save has to match some module."""
    linear = _linear_names(model)
    names = [name for name, _ in model.named_modules()]
    targets = options.target_modules
    if isinstance(targets, str) and targets != "all-linear" and not _is_layer_name(targets):
        if not any(re.fullmatch(targets, name) for name in names):
            raise ModelError(
                f"target_modules={targets!r} matches no module name. Linear layers: "
                f"{', '.join(linear)}."
            )
        targets = "all-linear"
    wanted = [] if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
    for argument, given in (
        ("target_modules", wanted),
        ("modules_to_save", options.modules_to_save),
    ):
        unknown = [n for n in given or [] if not any(f".{m}".endswith(f".{n}") for m in names)]
        if unknown:
            raise ModelError(
                f"{argument}: this {type(model).__name__} has no module {unknown}."
                f"{nearest(unknown[0], linear)} Its linear layers: {', '.join(linear)}."
            )


def _linear_names(model: "PreTrainedModel") -> list[str]:
    return sorted({name.rpartition(".")[2] for name, _ in _linear_modules(model)})


def _linear_modules(model: "PreTrainedModel") -> "list[tuple[str, torch.nn.Module]]":
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    return [(n, m) for n, m in model.named_modules() if isinstance(m, Linear | Conv1D)]


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
    model: "PeftModel", state_dict: "Mapping[str, torch.Tensor] | None" = None
) -> "dict[str, torch.Tensor]":
    """The adapter's tensors by the names that they have in a file."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(
        model, state_dict=state_dict, adapter_name=ADAPTER, save_embedding_layers=False
    )


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


def _adapter_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            f"adapter folder '{path}' does not exist (looked for {folder.absolute()})."
        )
    if not (folder / CONFIG).is_file():
        raise MissingFileError(
            f"folder '{path}' has no {CONFIG}, so it is no adapter; found "
            f"{', '.join(sorted(entry.name for entry in folder.iterdir())[:10]) or 'nothing'}."
        )
    return folder


def adapter_config(path: str | os.PathLike[str]) -> Any:
    """peft's configuration of the adapter in folder `path`.

    Raises:
        MissingFileError: no such folder, or no adapter in it.
    """
    from peft import PeftConfig

    return PeftConfig.from_pretrained(str(_adapter_folder(path)))


def _read(folder: Path) -> "dict[str, torch.Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if (folder / WEIGHTS).is_file():
            return load_file(folder / WEIGHTS)
        if (folder / OLD_WEIGHTS).is_file():
            return torch.load(folder / OLD_WEIGHTS, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ModelError(f"the adapter weights in '{folder}' are damaged: {error}") from error
    raise MissingFileError(f"adapter '{folder}' has no weights: looked for {WEIGHTS}.")


def _pair(folder: Path, model: "PreTrainedModel") -> str:
    return f"adapter '{folder}' does not fit {type(model).__name__} '{model.name_or_path}'"


def _check_architecture(model: "PreTrainedModel", config: Any, folder: Path) -> None:
    trained_on = (config.auto_mapping or {}).get("base_model_class")
    if trained_on and trained_on not in (base.__name__ for base in type(model).__mro__):
        raise ModelError(
            f"{_pair(folder, model)}: it was trained on {trained_on} "
            f"'{config.base_model_name_or_path}'. Load that model."
        )


def _fit_vocabulary(
    model: "PreTrainedModel", tensors: "dict[str, torch.Tensor]", where: str
) -> None:
    """Give the embeddings as many rows as the adapter has, which brings both of them whole."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [f"base_model.model.{n}.weight" for n, m in model.named_modules() if m in layers]
    own = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr, index]
    sizes = {name: len(tensors[name]) for name in names if name in tensors}
    if not sizes or set(sizes.values()) == {own}:
        return
    if len(sizes) < len(names) or len(set(sizes.values())) > 1:
        raise ModelError(
            f"{where}: it was trained on a vocabulary of another size ({sizes}, the base has {own} "
            "rows), and the rows added to the other embedding are not in it. Train with "
            "modules_to_save=['embed_tokens', 'lm_head'] when you add tokens."
        )
    model.resize_token_embeddings(sizes.popitem()[1], mean_resizing=False)


def _check_tensors(
    expected: "dict[str, torch.Tensor]", given: "dict[str, torch.Tensor]", where: str
) -> None:
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


def _key_problems(expected: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    missing = [k for k in expected if k not in given]
    unexpected = [k for k in given if k not in expected]
    problems = []
    if missing:
        problems.append(f"{len(missing)} tensors are missing, e.g. '{missing[0]}'")
    if unexpected:
        problems.append(f"{len(unexpected)} tensors have no place, e.g. '{unexpected[0]}'")
    return problems


def _check_complete(expected: "dict[str, torch.Tensor]", given: "dict[str, torch.Tensor]") -> None:
    problems = _key_problems(expected, given)
    empty = [name for name, tensor in given.items() if tensor.numel() == 0]
    if empty:
        problems.append(
            f"{len(empty)} tensors are empty (sharded, not gathered), e.g. '{empty[0]}'"
        )
    if problems:
        raise ModelError(f"the adapter cannot be saved: {'; '.join(problems)}.")
