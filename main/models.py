"""Base models, tokenizers and model families; the adapters on them are in `main.adapters`."""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from main.adapters import LoraOptions, add_adapter, load_adapter, read_adapter, save_adapter
from main.chatglm import is_chatglm, is_chatglm_tokenizer
from main.errors import ConfigError, MainError, MissingExtraError, MissingFileError, ModelError

if TYPE_CHECKING:  # torch and transformers take seconds: loaded by the functions that need them
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "LoraOptions",
    "add_adapter",
    "context_length",
    "default_device",
    "dtype_name",
    "family",
    "has_tokenizer",
    "load_adapter",
    "load_config",
    "load_model",
    "load_tokenizer",
    "read_adapter",
    "save_adapter",
    "stop_token_ids",
]

Quantization = Literal["4bit", "8bit"]
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.tiktoken")
PAD_TOKENS = ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>", "<|endoftext|>")
SPARE_TOKEN = re.compile(r"reserved|unused|extra_0")
FAMILIES = {
    "chatglm": "ChatGLM",
    "glm": "ChatGLM",
    "qwen": "Qwen",
    "llama": "Llama",
    "llava": "Llava",
}

# Where bitsandbytes is installed peft imports it, and on a CPU it recommends a kernel for 4-bit
# weights to everyone, whatever is loaded.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def has_tokenizer(folder: str | os.PathLike[str]) -> bool:
    """Whether an adapter brings a tokenizer: it, and its chat template, are what was trained."""
    return (Path(folder) / "tokenizer_config.json").is_file()


def load_tokenizer(
    path: str | os.PathLike[str], *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder (or hub name), fast, with a pad token of its own vocabulary.

    Raises:
        MissingFileError: the folder, or every tokenizer file in it, is missing.
        ModelError: only a slow (pure Python) tokenizer exists: it has no offset mapping, which
            the label spans of training need.
    """
    from transformers import AutoTokenizer

    folder = _local_folder(path)
    if folder and is_chatglm_tokenizer(folder):
        from main.chatglm.tokenizer import load_tokenizer as load_chatglm_tokenizer

        return load_chatglm_tokenizer(folder)
    if folder and not _found(folder, TOKENIZER_FILES) and not trust_remote_code:
        raise _nothing_found("tokenizer", folder, TOKENIZER_FILES)
    with _clear_errors("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    if not tokenizer.is_fast:
        raise ModelError(
            f"tokenizer '{path}' exists only as the slow class {type(tokenizer).__name__}, which "
            "reports no character offsets. Convert it to a tokenizer.json (the `tokenizers` "
            "library) and save it there."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = _spare_token(tokenizer)
    return tokenizer


def _spare_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A special token that no text contains, else eos; the vocabulary never grows."""
    specials = [
        str(token)
        for _, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and str(token) not in (tokenizer.eos_token, tokenizer.bos_token)
    ]
    named = [name for name in PAD_TOKENS if name in specials]
    spare = [name for name in specials if SPARE_TOKEN.search(name)]
    for name in [*named, *spare, tokenizer.eos_token]:
        if name is not None:
            return name
    raise ModelError(
        f"tokenizer '{tokenizer.name_or_path}' has neither a pad token nor an end token. "
        "Set `tokenizer.pad_token` to one of its tokens and save it."
    )


def load_config(path: str | os.PathLike[str], *, trust_remote_code: bool = False) -> Any:
    """The configuration of a model folder (or hub name).

    Raises:
        MissingFileError: no such folder, or no config.json in it.
        ModelError: a folder that is an adapter, or a configuration that cannot be read.
    """
    from transformers import AutoConfig

    folder = _local_folder(path)
    if folder and not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"'{path}' is an adapter, not a model. Give its base model here and this folder "
                "as peft_path (predictors) or resume_path (trainers)."
            )
        raise _nothing_found("model", folder, ("config.json",))
    if folder and is_chatglm(folder):
        from main.chatglm.config import load_config as load_chatglm_config

        return load_chatglm_config(folder)
    with _clear_errors("model", path):
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)


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
    folder = _local_folder(path)
    if folder and not _found(folder, WEIGHT_PATTERNS):
        raise _nothing_found("model", folder, WEIGHT_PATTERNS)
    device = default_device() if device is None else device
    dtype = _resolve_dtype(dtype, config, device if device_map is None else default_device())
    with _clear_errors("model", path):
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
    if folder and is_chatglm(folder):
        from main.chatglm.config import complete

        complete(model, folder)
    return model.eval()


def _config(path: str | os.PathLike[str], config: Any, trust_remote_code: bool) -> Any:
    """The configuration given, or the folder's; a ChatGLM's own class becomes transformers' Glm."""
    folder = _local_folder(path)
    if config is None:
        return load_config(path, trust_remote_code=trust_remote_code)
    if folder and is_chatglm(folder) and config.model_type == "chatglm":
        from main.chatglm.config import map_config

        return map_config(config.to_dict(), folder)
    return config


def _source(
    path: str | os.PathLike[str], config: Any, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """The class that loads a model, and what of its arguments say where the weights are."""
    from transformers import GlmForCausalLM

    folder = _local_folder(path)
    if not folder or not is_chatglm(folder):
        where = {"pretrained_model_name_or_path": str(path), "trust_remote_code": trust_remote_code}
        return auto_class(config), where
    from main.chatglm.weights import load_weights

    return GlmForCausalLM, {
        "pretrained_model_name_or_path": None,
        "state_dict": load_weights(folder, config),
    }


def auto_class(config: Any) -> Any:
    """Models that read images have a class of their own, which keeps their vision tower."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    reads_images = (
        hasattr(config, "vision_config") and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    )
    return AutoModelForImageTextToText if reads_images else AutoModelForCausalLM


def default_device() -> str:
    """This process's accelerator ('cuda:1' for local rank 1), else 'cpu'."""
    import torch

    if torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return "cpu"


def family(config: Any) -> str:
    """The name that checkpoints carry: 'ChatGLM', 'Qwen', 'Llama', else the model type.

    >>> from transformers import Qwen2Config
    >>> family(Qwen2Config())
    'Qwen'
    """
    for prefix, name in FAMILIES.items():
        if config.model_type.startswith(prefix):
            return name
    return config.model_type.capitalize()


def context_length(config: Any) -> int | None:
    """Tokens that the model was built for, prompt and completion together; None if unlimited."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    for name in ("max_position_embeddings", "seq_length", "n_positions"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return None


def stop_token_ids(
    model: "PreTrainedModel | GenerationConfig", tokenizer: "PreTrainedTokenizerBase"
) -> list[int]:
    """Every id that ends an answer, ascending.

    The generation config's end ids, the tokenizer's eos, and what the chat template writes after
    an assistant's turn; a template that writes nothing (GLM-4) is ended by the next role's token.
    """
    config = getattr(model, "generation_config", model)
    ends = config.eos_token_id
    found = set(ends if isinstance(ends, list | tuple) else [ends])
    found |= {tokenizer.eos_token_id, _turn_end(tokenizer)}
    return sorted(int(token) for token in found if token is not None)


def _turn_end(tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Id of the special token that the chat template puts after an assistant's turn, if any."""
    if not tokenizer.chat_template:
        return None
    answer = "the-answer-of-the-assistant"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    for messages in (turns, [*turns, turns[0]]):
        text = _probe_text(tokenizer, messages)
        found = _special_prefix(tokenizer, text.rpartition(answer)[2].lstrip())
        if found is not None:
            return found
    return None


def _probe_text(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]]) -> str:
    """The rendered dialogue; contents as parts for a template of a vision model that needs them."""
    from jinja2 import TemplateError

    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        if messages[1]["content"] in text:
            return text
    except (TemplateError, TypeError):
        pass
    return str(tokenizer.apply_chat_template(parts, tokenize=False))


def _special_prefix(tokenizer: "PreTrainedTokenizerBase", text: str) -> int | None:
    """Id of the longest special token that `text` starts with; a bare BOS ends nothing."""
    starts = [
        (len(str(token)), token_id)
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if token.special and text.startswith(str(token))
    ]
    found = max(starts)[1] if starts else None
    only_bos = found == tokenizer.bos_token_id != tokenizer.eos_token_id
    return None if only_bos else found


def _local_folder(path: str | os.PathLike[str]) -> Path | None:
    """The folder that `path` names; None for what can only be a name on the hub.

    Raises:
        MissingFileError: a path that is not a hub name and does not exist, or is a file.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise MissingFileError(f"'{path}' is a file; a model is a folder with a config.json.")
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path)):
        return None
    raise MissingFileError(
        f"model folder '{path}' does not exist (looked for {folder.absolute()})."
    )


def _found(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _nothing_found(what: str, folder: Path, patterns: tuple[str, ...]) -> MissingFileError:
    names = sorted(entry.name for entry in folder.iterdir())
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
    return MissingFileError(
        f"folder '{folder}' holds no {what}: looked for {', '.join(patterns)}; "
        f"found {shown or 'an empty folder'}."
    )


class _clear_errors:
    """Turn what transformers raises while loading into one of our errors that names the path."""

    def __init__(self, what: str, path: str | os.PathLike[str]):
        self.what, self.path = what, path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        import torch
        from safetensors import SafetensorError

        if error is None or isinstance(error, MainError | torch.OutOfMemoryError):
            return
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{self.what} '{self.path}' runs Python code that it brings along. If you trust "
                "it, pass trust_remote_code=True."
            ) from error
        if _local_folder(self.path) is None and isinstance(error, OSError):
            raise MissingFileError(
                f"{self.what} '{self.path}' is neither a folder (looked for "
                f"{Path(self.path).absolute()}) nor could it be had from the hub: {first}"
            ) from error
        if isinstance(error, OSError | ValueError | KeyError | RuntimeError | SafetensorError):
            raise ModelError(f"{self.what} '{self.path}' cannot be loaded: {first}") from error


def _check_placement(device: Any, device_map: Any, quantization: str | None) -> None:
    if device is not None and device_map is not None:
        raise ConfigError("device and device_map exclude each other: give one of them.")
    if quantization not in (None, "4bit", "8bit"):
        raise ConfigError(f"quantization={quantization!r} must be '4bit', '8bit' or None.")


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
