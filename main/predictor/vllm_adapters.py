"""Adapters in a vLLM engine: loaded at their first use, switched with every call."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from main.dialogue.prompts import answer_lead
from main.errors import ConfigError, ModelError
from main.models import has_tokenizer, load_tokenizer, read_adapter
from main.models.adapter_files import CONFIG, WEIGHTS, adapter_config
from main.models.adapters import check_adapter
from main.models.families import auto_class, original_adapter
from main.models.training_record import read_record
from main.predictor.answerer import answerer
from main.predictor.as_trained import AsTrained
from main.predictor.call import Voice
from main.predictor.vllm_engine import Engine

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM has buffers for
HELD = 4  # adapters kept in memory, so that switching back does not read files


def lora_arguments(peft_path: str | Path | None, engine: Mapping[str, Any]) -> dict[str, Any]:
    """Engine arguments for adapters: room for the one given, or none of it."""
    if peft_path is None and not engine.get("enable_lora"):
        return {}
    slots = engine.get("max_loras", 1)
    arguments: dict[str, Any] = {"enable_lora": True, "max_cpu_loras": max(HELD, slots)}
    if peft_path is not None:
        arguments["max_lora_rank"] = room_for(largest_rank(checked_config(peft_path)))
    return arguments


def checked_config(path: str | Path) -> Any:
    """The adapter's configuration, if it is of a kind that vLLM computes.

    Raises:
        ModelError: DoRA, or modules that were trained whole.
    """
    config = adapter_config(path)
    merge = "Merge it into its base (main.utils.merge_model) and serve that."
    if getattr(config, "use_dora", False):
        raise ModelError(f"adapter '{path}' is DoRA, which vLLM does not compute. {merge}")
    if getattr(config, "modules_to_save", None):
        raise ModelError(
            f"adapter '{path}' brings whole modules ({', '.join(config.modules_to_save)}), which "
            f"vLLM does not put in place. {merge}"
        )
    return config


def check_servable(path: str | Path, model_config: Any) -> Any:
    """The adapter's configuration, if vLLM can put it on a model of this configuration.

    Raises:
        ModelError: a kind that it does not compute, names of a model's original code, or tensors
            of another base.
        MissingFileError: no adapter there.
    """
    config = checked_config(path)
    folder = Path(path).expanduser()
    if original_adapter(read_adapter(folder)[1]):
        raise ModelError(
            f"adapter '{folder}' names the layers of its model's original code, which vLLM does "
            "not translate. Merge it into its base (main.utils.merge_model) and serve that."
        )
    check_adapter(_skeleton(model_config), folder)
    return config


def largest_rank(config: Any) -> int:
    """The rank of its widest layer."""
    return max([config.r, *(getattr(config, "rank_pattern", None) or {}).values()])


def room_for(rank: int) -> int:
    """vLLM's smallest buffer that holds an adapter of this rank.

    >>> room_for(16), room_for(20)
    (16, 32)
    """
    fitting = [size for size in RANKS if size >= rank]
    if not fitting:
        raise ModelError(f"the adapter's rank {rank} is beyond vLLM's largest, {RANKS[-1]}.")
    return fitting[0]


class Adapters:
    """The adapters that an engine has seen.

    Args:
        base: who answers without an adapter.
        stop_ids: end tokens of a tokenizer.
        arguments: what the engine was started with.
        config: the base model's configuration.
    """

    def __init__(
        self,
        engine: Engine,
        base: Voice,
        stop_ids: Callable[[Any], frozenset[int]],
        arguments: Mapping[str, Any],
        config: Any,
    ):
        self.config, self.arguments = config, arguments
        self.engine, self.base, self.stop_ids = engine, base, stop_ids
        self.room = arguments.get("max_lora_rank", 16) if arguments.get("enable_lora") else 0
        self.trust_remote_code = bool(arguments.get("trust_remote_code"))
        self._numbers = itertools.count(1)
        self._voices: dict[tuple[str, int, int], Voice] = {}

    def voice(self, path: str | Path) -> Voice:
        """Who answers with this adapter; files that changed since are loaded anew.

        Raises:
            ConfigError: the engine was started without adapters, or with room for smaller ones.
            MissingFileError, ModelError: no adapter there, or none that vLLM can use.
        """
        if not self.room:
            raise ConfigError(
                "this engine was started without adapters. Give peft_path or enable_lora=True to "
                "vllm.Predictor()."
            )
        config = checked_config(path)
        weights = (Path(path).expanduser() / WEIGHTS).resolve()
        stamp = weights.stat() if weights.is_file() else (weights.parent / CONFIG).stat()
        key = (str(weights.parent), stamp.st_mtime_ns, stamp.st_size)
        if key not in self._voices:
            self._check_rank(path, largest_rank(config))
            self._voices[key] = self._load(weights.parent)
        return self._voices[key]

    def _check_rank(self, path: str | Path, rank: int) -> None:
        if rank > self.room:
            raise ConfigError(
                f"adapter '{path}' has rank {rank}, and this engine has room for {self.room}. Give "
                f"max_lora_rank={room_for(rank)} to vllm.Predictor()."
            )

    def _load(self, folder: Path) -> Voice:
        from vllm.lora.request import LoRARequest

        check_servable(folder, self.config)
        number = next(self._numbers)
        # the name is part of the key under which vLLM keeps the prompts that it has seen
        request = LoRARequest(f"{folder.name}-{number}", number, str(folder))
        self.engine.add_adapter(request)
        trained = AsTrained(read_record(folder))
        who = answerer(self.arguments["model"], folder, self.arguments.get("quantization"))
        if not has_tokenizer(folder):
            return self.base._replace(adapter=request, trained=trained, answerer=who)
        tokenizer = load_tokenizer(folder, trust_remote_code=self.trust_remote_code)
        lead = answer_lead(tokenizer)
        return Voice(tokenizer, self.stop_ids(tokenizer), lead, request, trained, who)


def _skeleton(config: Any) -> Any:
    """The base model without weights: vLLM itself takes an adapter of other shapes unseen."""
    import torch

    with torch.device("meta"):
        return auto_class(config).from_config(config)
