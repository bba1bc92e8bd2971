"""Base models: configuration, weights, where they lie and in which dtype."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from main.errors import ConfigError, MissingExtraError, ModelError
from main.models.families import auto_class, original_of
from main.models.folder import clear_errors, has_any, local_folder, nothing_found
from main.models.harmless import check_config, check_weights

if TYPE_CHECKING:  # torch and transformers take seconds: loaded by the functions that need them
    import torch
    from transformers import PreTrainedModel

Quantization = Literal["4bit", "8bit"]
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")

# Where bitsandbytes is installed peft imports it, and on a CPU it recommends a kernel for 4-bit
# weights to everyone, whatever is loaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def load_config(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder (or hub name).

    Raises:
        MissingFileError: no such folder, or no config.json in it.
        ModelError: a folder that is an adapter, or a configuration that cannot be read, or asks for
            code of others or for parts without number.
    """
    from transformers import AutoConfig

    folder = local_folder(path)
    if folder and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"'{path}' is an adapter, not a model. Give its base model here and this folder "
                "as peft_path (predictors) or resume_path (trainers)."
            )
        raise nothing_found("model", folder, ("config.json",))
    original = original_of(folder)
    if folder and original:
        return original.config(folder)
    with clear_errors("model", path):
        config = AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    check_config(config, path)
    return config


def load_model(
    path: str | os.PathLike[str],
    *,
    config: Any = None,
    dtype: "str | torch.dtype" = "auto",
    device: "str | torch.device | None" = None,
    device_map: Any = None,
    quantization: Quantization | None = None,
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """A causal language model in eval mode, with its vision tower if it has one.

    Args:
        path: folder, or the name of a model on the hub.
        config: configuration to use instead of the folder's own.
        dtype: 'auto' (the checkpoint's, or float32 where the device runs that badly), or a torch
            dtype or its name, e.g. 'bfloat16'.
        device: None = this process's accelerator, else the CPU. Excludes `device_map`.
        device_map: as in transformers, e.g. 'auto' to spread a model over several devices.
        quantization: '4bit' (NF4) or '8bit', by bitsandbytes.

    Raises:
        ConfigError: arguments that contradict each other.
        MissingFileError: no such folder, or nothing to load in it.
        MissingExtraError: quantization without bitsandbytes.
        ModelError: weights that are damaged or do not belong to the configuration.
    """
    _check_placement(device, device_map, quantization)
    config = _config(path, config, trust_remote_code)
    folder = local_folder(path)
    if folder and not has_any(folder, WEIGHT_PATTERNS):
        raise nothing_found("model", folder, WEIGHT_PATTERNS)
    check_weights(folder, "model")
    device = default_device() if device is None else device
    dtype = _resolve_dtype(dtype, config, device if device_map is None else default_device())
    with clear_errors("model", path):
        loader, source = _source(path, config, trust_remote_code)
        loaded: Any = loader.from_pretrained(
            **source,
            config=config,
            dtype=dtype,
            device_map=device_map if device_map is not None else {"": device},
            quantization_config=_quantization_config(quantization, dtype),
            output_loading_info=True,
            **({"attn_implementation": attn_implementation} if attn_implementation else {}),
        )
    model, report = loaded
    _check_loaded(path, config, report)
    original = original_of(folder)
    if folder and original:
        original.complete(model, folder)
    return model.eval()


def _config(path: str | os.PathLike[str], config: Any, trust_remote_code: bool) -> Any:
    """The configuration given, for transformers' class, or the folder's."""
    if config is None:
        return load_config(path, trust_remote_code=trust_remote_code)
    folder = local_folder(path)
    original = original_of(folder)
    return original.adopt(config, folder) if folder and original else config


def _source(
    path: str | os.PathLike[str], config: Any, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The class that loads a model, and what of its arguments say where the weights are."""
    folder = local_folder(path)
    original = original_of(folder)
    if not folder or not original:
        where = {"pretrained_model_name_or_path": str(path), "trust_remote_code": trust_remote_code}
        return auto_class(config), where
    weights = original.weights(folder, config)
    return original.model_class(), {"pretrained_model_name_or_path": None, "state_dict": weights}


def default_device() -> str:
    """This process's accelerator ('cuda:1' for local rank 1), else 'cpu'."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"


def _check_placement(device: Any, device_map: Any, quantization: str | None) -> None:
    if device is not None and device_map is not None:
        raise ConfigError("device and device_map exclude each other: give one of them.")
    if quantization not in (None, "4bit", "8bit"):
        raise ConfigError(f"quantization={quantization!r} must be '4bit', '8bit' or None.")
    if device is not None:
        _check_device(device)


def _check_device(given: Any) -> None:
    import torch

    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device={given!r} is no device's name. Give 'cpu', or an accelerator's such as "
            "'cuda' or 'cuda:1'."
        ) from error
    accelerator = torch.accelerator.current_accelerator()
    kinds = {
        "cpu",
        *([accelerator.type] if accelerator and torch.accelerator.is_available() else []),
    }
    if device.type not in kinds:
        raise ConfigError(f"device={given!r} is not on this machine; here are {sorted(kinds)}.")
    count = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device={given!r}: this machine has {count} of that kind, from 0.")


def _resolve_dtype(dtype: "str | torch.dtype", config: Any, device: Any) -> "torch.dtype":
    """'auto' and names -> a torch dtype; see `load_model`."""
    import torch

    if dtype != "auto":
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise ConfigError(
                f"dtype={dtype!r} must be 'auto', 'float32', 'bfloat16', 'float16' or a "
                "floating-point torch.dtype."
            )
        return found
    stored = getattr(config, "dtype", None) or torch.float32
    stored = getattr(torch, stored) if isinstance(stored, str) else stored
    return stored if _runs_well(stored, torch.device(device)) else torch.float32


def _runs_well(dtype: "torch.dtype", device: "torch.device") -> bool:
    """Half precision without hardware for it is slower than float32, or not implemented."""
    import torch

    if dtype == torch.float16:
        return device.type != "cpu"
    if dtype == torch.bfloat16 and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return True


def _quantization_config(quantization: str | None, dtype: "torch.dtype") -> Any:
    if quantization is None:
        return None
    try:
        import bitsandbytes  # noqa: F401  (only to see that it is there)
    except ImportError as error:
        raise MissingExtraError(
            "bitsandbytes", "qlora", f"quantization='{quantization}'"
        ) from error
    from transformers import BitsAndBytesConfig

    if quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # FSDP2 cuts parameters of one dtype
    )


def _check_loaded(path: str | os.PathLike[str], config: Any, report: dict[str, Any]) -> None:
    """Weights that the files lack would stay random without a word: refuse them."""
    missing: Iterator[str] = iter(sorted(report["missing_keys"]))
    first = next(missing, None)
    if first is not None:
        raise ModelError(
            f"the weights in '{path}' lack {1 + sum(1 for _ in missing)} tensors that its "
            f"{config.model_type} configuration calls for, e.g. '{first}'. The download may be "
            "incomplete, or config.json of another model."
        )


def dtype_name(config: Any, dtype: "str | torch.dtype" = "auto") -> str:
    """The dtype in which `load_model` would load on this process's device, e.g. 'float32'."""
    return str(_resolve_dtype(dtype, config, default_device())).removeprefix("torch.")
