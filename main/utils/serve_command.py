"""What `vllm serve` is started with for a base model and its adapters.

One server has one chat template, one set of its variables and one set of end tokens for all its
models: those that the adapters were trained with. Adapters that differ in these are refused.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from main.dialogue.calls import format_of
from main.dialogue.ends import generation_config, stop_token_ids
from main.dialogue.renderer import renderer_of
from main.errors import ConfigError, ModelError
from main.models import dtype_name, has_tokenizer, load_config, load_tokenizer
from main.models.training_record import TrainingRecord, read_record
from main.predictor.vllm_adapters import HELD, check_servable, largest_rank, room_for
from main.predictor.vllm_engine import ALIKE, for_cpu, refuse_original
from main.predictor.vllm_pixels import check_torchvision
from main.vision import load_vision

TEMPLATE, GENERATION = "chat_template.jinja", "generation_config.json"
OURS = {"--host", "--port", "--api-key", "--served-model-name", "--lora-modules", "--enable-lora"}
OURS |= {"--chat-template", "--default-chat-template-kwargs", "--generation-config", "--model"}


class Adapter(NamedTuple):
    """name: by which it is asked. rank: of its widest layer. tokenizer: None = its base's."""

    name: str
    folder: Path
    rank: int
    record: TrainingRecord
    tokenizer: Any


class Plan(NamedTuple):
    """What is served.

    base: folder of the model, or its name on the hub. name: by which it is asked.
    tokenizer: the one whose template is used. variables: of the template, by default.
    parser: vLLM's name for the model's way of calling tools; '' = it reads no calls.
    ends: ids of the tokens that end an answer.
    """

    base: str
    name: str
    adapters: list[Adapter]
    config: Any
    tokenizer: Any
    variables: dict[str, Any]
    parser: str
    ends: list[int]
    trust_remote_code: bool


def plan_of(model: str, adapters: Mapping[str, str | Path], trust_remote_code: bool) -> Plan:
    """Check and read what is to be served.

    Raises:
        ModelError: what vLLM cannot load: DoRA, whole modules, tokens of an adapter's own.
        ConfigError: adapters that need different servers.
        MissingFileError: no such model or adapter.
    """
    refuse_original(model)
    config = load_config(model, trust_remote_code=trust_remote_code)
    base = load_tokenizer(model, trust_remote_code=trust_remote_code)
    if load_vision(model, config, base) is not None:
        check_torchvision(model)
    found = [_adapter(name, Path(path), config, base) for name, path in adapters.items()]
    folder = Path(model).expanduser()
    place = str(folder.absolute()) if folder.is_dir() else model
    name = folder.name
    if name in adapters:
        raise ConfigError(f"an adapter and its base are both called {name!r}: rename the adapter.")
    dialogues = [one for one in found if not one.record.plain_text]
    tokenizer = _alike(dialogues, base)
    variables = _same_variables(dialogues, read_record(model))
    ends = stop_token_ids(generation_config(model, config), tokenizer, config)
    return Plan(
        place, name, found, config, tokenizer, variables, _parser(tokenizer), ends,
        trust_remote_code,
    )  # fmt: skip


def named(peft_path: Any) -> dict[str, str | Path]:
    """Adapters by name: a folder, several, 'name=folder', or a mapping.

    >>> named(["save_model/tickets/Llama_150", "b=other"])
    {'Llama_150': 'save_model/tickets/Llama_150', 'b': 'other'}
    """
    if peft_path is None:
        return {}
    if isinstance(peft_path, Mapping):
        return {str(name): path for name, path in peft_path.items()}
    given = [peft_path] if isinstance(peft_path, str | Path) else list(peft_path)
    pairs = [_named(one) for one in given]
    double = next((n for i, (n, _) in enumerate(pairs) if n in [m for m, _ in pairs[:i]]), None)
    if double is not None:
        raise ConfigError(
            f"two adapters are called {double!r}: name them yourself, as 'name=folder'."
        )
    return dict(pairs)


def command(
    plan: Plan, folder: Path, host: str, port: int, dtype: str, further: Sequence[str] = ()
) -> list[str]:
    """The command line, without the key; what it needs as files is written to `folder`."""
    ends = {"eos_token_id": plan.ends}
    (folder / GENERATION).write_text(json.dumps(ends), encoding="utf-8")
    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "served-model-name": plan.name,
        "dtype": dtype_name(plan.config, dtype),
        "trust-remote-code": plan.trust_remote_code,
        "uvicorn-log-level": "warning",
        **ALIKE,
        "generation-config": str(folder),  # end tokens alone
        **_without(further, for_cpu({})),
    }
    options.pop("generation_config")
    if plan.tokenizer.chat_template:
        (folder / TEMPLATE).write_text(plan.tokenizer.get_chat_template(), encoding="utf-8")
        options["chat-template"] = str(folder / TEMPLATE)
    if plan.variables:
        options["default-chat-template-kwargs"] = json.dumps(plan.variables)
    if plan.parser:
        options |= {"enable-auto-tool-choice": True, "tool-call-parser": plan.parser}
    if plan.adapters:
        options |= _lora_options(plan.adapters)
    return [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", plan.base,
        *_flags(options), *further,
    ]  # fmt: skip


def raise_ours(further: Iterable[str]) -> None:
    """Refuse arguments of vLLM that this command decides."""
    given = [one.partition("=")[0].replace("_", "-") for one in further if one.startswith("--")]
    for name in given:
        if name in OURS:
            raise ConfigError(
                f"'{name}' is decided by serve: give host, port, api_key, peft_path, or start "
                "vllm serve yourself."
            )


def _lora_options(adapters: Sequence[Adapter]) -> dict[str, Any]:
    return {
        "enable-lora": True,
        "max-lora-rank": room_for(max(one.rank for one in adapters)),
        "max-loras": min(len(adapters), HELD),
        "max-cpu-loras": max(len(adapters), HELD),
        "lora-modules": [
            json.dumps({"name": one.name, "path": str(one.folder)}) for one in adapters
        ],
    }


def _flags(options: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is False:
            flags.append(f"--no-{flag.removeprefix('--')}")
        elif value is True:
            flags.append(flag)
        else:
            values = value if isinstance(value, list) else [value]
            flags += [flag, *map(str, values)]
    return flags


def _without(further: Iterable[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the caller has no word of; `--no-...` is one too."""
    said = {one.partition("=")[0].removeprefix("--").removeprefix("no-") for one in further}
    return {k: v for k, v in options.items() if k.replace("_", "-") not in said}


def _named(given: Any) -> tuple[str, str | Path]:
    name, sign, folder = str(given).partition("=")
    if sign and not Path(str(given)).expanduser().is_dir():
        return name, folder
    return Path(str(given)).expanduser().absolute().name, given


def _adapter(name: str, path: Path, config: Any, base: Any) -> Adapter:
    adapter = check_servable(path, config)
    folder = path.expanduser().absolute()
    tokenizer = load_tokenizer(folder) if has_tokenizer(folder) else None
    if tokenizer is not None and tokenizer.get_vocab() != base.get_vocab():
        raise ModelError(
            f"adapter '{path}' brings a tokenizer with other tokens than its base, and vLLM has "
            "one for both. Merge it into its base (main.utils.merge_model) and serve that."
        )
    record = read_record(folder) or TrainingRecord()
    return Adapter(name, folder, largest_rank(adapter), record, tokenizer)


def _alike(adapters: Sequence[Adapter], base: Any) -> Any:
    """The tokenizer whose template all adapters were trained with; the base's without any."""
    tokenizers = {one.name: one.tokenizer or base for one in adapters}
    templates = {name: str(found.chat_template) for name, found in tokenizers.items()}
    _same(templates, "chat templates")
    return next(iter(tokenizers.values()), base)


def _same_variables(adapters: Sequence[Adapter], of_base: TrainingRecord | None) -> dict[str, Any]:
    found = {one.name: json.dumps(one.record.template_kwargs) for one in adapters}
    _same(found, "variables of the chat template")
    if not adapters:
        return dict(of_base.template_kwargs) if of_base else {}
    return dict(adapters[0].record.template_kwargs)


def _same(values: Mapping[str, str], what: str) -> None:
    first = next(iter(values), "")
    other = next((name for name, value in values.items() if value != values[first]), None)
    if other is not None:
        raise ConfigError(
            f"adapters {first!r} and {other!r} were trained with different {what}, and a server "
            "has one for all its models: start one server for each."
        )


def _parser(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        return ""
    try:
        return format_of(renderer_of(tokenizer)).vllm
    except ModelError:
        return ""
