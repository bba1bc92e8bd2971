"""What `predict`, `chat` and `evaluate` share: which model answers."""

from dataclasses import dataclass, field
from typing import Any, Literal

from main.errors import ConfigError, MissingExtraError
from main.models.training_record import read_record
from main.predictor.options import PredictorOptions

ALIASES = {"model": "model_from_pretrained", "resume_path": "peft_path"}
OF_HF = ("batch_size", "max_batch_tokens", "device", "device_map", "attn_implementation")


@dataclass(kw_only=True)
class AnswererOptions(PredictorOptions):
    """Who answers.

    model_from_pretrained (model): folder of the base model, or its name on the hub; by default the
        base that the adapter's training.json names.
    backend: 'hf' answers with transformers, 'vllm' with a vLLM engine.
    engine: further arguments of that engine, e.g. {"max_model_len": 4096}.
    """

    model_from_pretrained: Any = None
    backend: Literal["hf", "vllm"] = "hf"
    engine: dict = field(default_factory=dict)


def make_predictor(given: dict[str, Any]) -> Any:
    """A predictor of what was given of `AnswererOptions`.

    Raises:
        ConfigError: no model, or arguments that the backend does not have.
    """
    arguments = dict(given)
    backend, engine = arguments.pop("backend", "hf"), arguments.pop("engine", {})
    if arguments.get("model_from_pretrained") is None:
        arguments["model_from_pretrained"] = base_of(arguments.get("peft_path"))
    if backend == "hf":
        if engine:
            raise ConfigError(f"engine={engine!r} changes nothing with backend='hf'.")
        from main.predictor.hf import Predictor

        return Predictor(**arguments)
    unread = [name for name in OF_HF if name in arguments]
    if unread:
        raise ConfigError(f"{', '.join(unread)}: for backend='hf'; vLLM's own go into engine.")
    return _vllm({**arguments, **engine})


def _vllm(arguments: dict[str, Any]) -> Any:
    from importlib.util import find_spec

    if find_spec("vllm") is None:
        raise MissingExtraError("vllm", "vllm", "backend='vllm'")
    from main.predictor.vllm import Predictor

    return Predictor(**arguments)


def base_of(peft_path: Any) -> str:
    """The base model that an adapter was trained on.

    Raises:
        ConfigError: no adapter, or one that does not say it.
    """
    if peft_path is None:
        raise ConfigError("say who answers: --model MODEL, or --peft_path of an adapter.")
    record = read_record(peft_path)
    if record is None or not record.base:
        raise ConfigError(
            f"'{peft_path}' does not say which base model it belongs to (no training.json): give "
            "--model too."
        )
    return record.base
