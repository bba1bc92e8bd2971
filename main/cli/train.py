"""`main-peft train METHOD`: a trainer's constructor and call, one result a line."""

import logging
import sys
from importlib import import_module
from typing import Any, NamedTuple

from main.cli.arguments import Arguments, Given, Part, tell
from main.cli.config_file import read_config
from main.cli.rewards import functions
from main.errors import ConfigError
from main.options import nearest, parse
from main.trainer.loop.run_file import spelt
from main.types import EpochResult


class Method(NamedTuple):
    """A trainer, and where its options are, which are read without torch.

    setup, loop: 'module:class'; setup_aliases, loop_aliases: 'module:name'.
    """

    about: str
    setup: str
    loop: str
    setup_aliases: str = "main.trainer.arguments:SETUP_ALIASES"
    loop_aliases: str = "main.trainer.arguments:LOOP_ALIASES"


METHODS = {
    "lora": Method(
        "Supervised fine-tuning (SFT) on dialogues, or on context and target.",
        "main.trainer.supervised:SupervisedSetup",
        "main.trainer.arguments:LoopOptions",
    ),
    "dpo": Method(
        "Preference losses (DPO, its variants, KTO) on better and worse answers.",
        "main.trainer.dpo.options:PreferenceSetup",
        "main.trainer.dpo.options:PreferenceOptions",
    ),
    "ppo": Method(
        "PPO with a critic; rewards by gold answers, a model or functions.",
        "main.trainer.ppo.options:PPOSetup",
        "main.trainer.ppo.options:PPOOptions",
        "main.trainer.ppo.options:PPO_SETUP_ALIASES",
        "main.trainer.ppo.options:PPO_LOOP_ALIASES",
    ),
    "grpo": Method(
        "GRPO and its variants: completions against others of their prompt.",
        "main.trainer.grpo.options:GRPOSetup",
        "main.trainer.grpo.options:GRPOOptions",
        "main.trainer.grpo.options:GRPO_SETUP_ALIASES",
        "main.trainer.grpo.options:GRPO_LOOP_ALIASES",
    ),
}
OBJECTS = {
    "tokenizer": "it is an object, which a script can give",
    "config": "it is an object, which a script can give; --config FILE is a file of arguments",
}


def run(words: list[str]) -> None:
    """Train; every epoch is a line on standard output."""
    if not words or words in (["-h"], ["--help"]):
        print(overview())
        return
    method = method_of(words, "train")
    given = arguments(method).parse(words[1:] if words[0] == method else words)
    check_method(method, given)
    _train(method, *given.parts)


def overview() -> str:
    lines = [f"  {name:<6}{method.about}" for name, method in METHODS.items()]
    return "\n".join(
        [
            "usage: main-peft train METHOD --from_pretrained MODEL --data_path DATA ...",
            "       main-peft train --config FILE",
            "",
            *lines,
            "",
            "main-peft train METHOD --help lists all arguments. Every run writes its own to",
            "save_model/<task_name>/run.yaml; --config with that file is the same run.",
        ]
    )


def arguments(method: str) -> Arguments:
    """What `train METHOD` accepts: the constructor's arguments and the call's.

    Read without torch: the classes are the trainer's own, as a test holds.
    """
    kind = METHODS[method]
    parts = [
        Part(_load(kind.setup), _load(kind.setup_aliases), OBJECTS),
        Part(_load(kind.loop), _load(kind.loop_aliases)),
    ]
    return Arguments(f"main-peft train {method}", kind.about, parts, method=method)


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def method_of(words: list[str], command: str) -> str:
    """The one that is named, or the one of the file.

    Raises:
        ConfigError: neither, or one that does not exist.
    """
    if not words[0].startswith("-"):
        if words[0] not in METHODS:
            raise ConfigError(
                f"there is no method '{words[0]}'.{nearest(words[0], METHODS)} Methods: "
                f"{', '.join(METHODS)}."
            )
        return words[0]
    for number, word in enumerate(words):
        flag, _, path = word.partition("=")
        path = path or "".join(words[number + 1 : number + 2])
        if flag == "--config" and path:
            method = read_config(path).method
            if method in METHODS:
                return method
            raise ConfigError(
                f"config '{path}' names "
                f"{f'the method {method!r}' if method else 'no method'}: write 'method: lora' "
                f"into it (one of {', '.join(METHODS)}), or main-peft {command} METHOD."
            )
    raise ConfigError(f"name a method: main-peft {command} METHOD, one of {', '.join(METHODS)}.")


def check_method(method: str, given: Given) -> None:
    file = given.file
    if file and file.method not in ("", method):
        raise ConfigError(f"config '{file.path}' is one of method '{file.method}', not '{method}'.")


def _train(method: str, setup: dict[str, Any], call: dict[str, Any]) -> None:
    spellings = {}
    if call.get("reward_func") is not None:
        spellings["reward_func"] = call["reward_func"]
        call = {**call, "reward_func": functions(call["reward_func"])}
    _check(method, setup, call)
    trainer_class = import_module(f"main.trainer.{method}").Trainer
    with spelt(spellings):
        trainer = trainer_class(**setup)
        last = None
        for result in trainer(**call):
            last = result
            if _is_main():
                tell(line(result))
    if last is not None and last.checkpoint and _is_main():
        tell(f"the adapter: {last.checkpoint}")
        tell(f"try it: main-peft chat --peft_path {last.checkpoint}")


def _check(method: str, setup: dict[str, Any], call: dict[str, Any]) -> None:
    """What is missing or wrong by itself, before a model is loaded; the trainer tells the rest."""
    told = logging.getLogger("main.options")
    told.disabled = True  # what has no effect is told by the trainer, once
    try:
        parse(_load(METHODS[method].setup), setup, f"train {method}")
        parse(_load(METHODS[method].loop), call, f"train {method}")
    finally:
        told.disabled = False


def line(result: EpochResult) -> str:
    """An epoch in one line, or in as many as 80 columns need.

    >>> line(EpochResult(1, {"loss": 1.25}, {"loss": 1.5}, None, 12))
    'epoch 1, step 12: loss 1.25, eval loss 1.5'
    """
    train = sorted(result.train.items(), key=lambda entry: entry[0] != "loss")
    shown = [f"{name} {value:.4g}" for name, value in train]
    shown += [f"eval {name} {value:.4g}" for name, value in result.eval.items()]
    lines = [f"epoch {result.epoch}, step {result.step}: {shown[0] if shown else ''}"]
    for text in shown[1:]:
        if len(f"{lines[-1]}, {text}") >= 80:
            lines.append("   ")
            lines[-2] += ","
            lines[-1] += f" {text}"
        else:
            lines[-1] += f", {text}"
    return "\n".join(lines)


def _is_main() -> bool:
    from main.system.processes import this_process

    return "torch" in sys.modules and this_process().is_main
