"""What a run will need, before it is made: memory by its parts, and time.

    python -m main.utils.plan MODEL --method grpo --max_length 512 --batch_size 16 --rows 2000

Nothing is estimated from formulas. The run itself is made for a few steps, on rows of the length
asked for, with the first two layers of the model and again with its first four, each in a process
of its own; every further layer adds what the second two added. Arguments are those of the trainer's
constructor and of its call. What judges and tools take is not in it: those are the user's own.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

from main.errors import ConfigError, TrainingError
from main.options import below, parse, raise_all, unknown_keywords
from main.utils.trial import Specification, Trial, depth

Method = Literal["lora", "dpo", "ppo", "grpo"]
FEW, MORE = 2, 4  # layers of the two trials
OF_THE_RUN = ("from_pretrained", "data_path", "task_name", "output_dir")  # a trial has its own


@dataclass
class PlanOptions:
    """Arguments of `plan` beside those of the trainer.

    model: folder of the base model. method: 'lora', 'dpo', 'ppo' or 'grpo'.
    length: tokens of a row, prompt and answer together (of a prompt in GRPO and PPO); by default
        `max_length`, what the longest row may have.
    answer: how many of them are the answer's; by default half.
    rows: of the data set, for the time of an epoch.
    """

    model: str | Path
    method: Method = "lora"
    length: int | None = None
    answer: int | None = None
    rows: int | None = None

    def problems(self) -> list[str]:
        return below(self, {"length": 8, "answer": 1, "rows": 1})


@dataclass
class Plan:
    """What was planned.

    layers: of the model; the trials had fewer.
    memory: GiB of a process by part, in sum the peak.
    start: seconds from a loaded model to the first step, as for a reference.
    step: seconds of an optimizer step. epoch: of a pass over `rows`; None where they are not told.
    """

    layers: int
    memory: dict[str, float]
    start: float
    step: float
    epoch: float | None

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    def __str__(self) -> str:
        lines = [f"{'memory of a process':<36}{'GiB':>8}"]
        lines += [f"  {name:<34}{value:>8.2f}" for name, value in self.memory.items()]
        lines += [f"  {'peak':<34}{self.peak:>8.2f}", f"{'time':<36}{'s':>8}"]
        lines += [f"  {'before the first step':<34}{self.start:>8.1f}"]
        lines += [f"  {'a step':<34}{self.step:>8.2f}"]
        if self.epoch is not None:
            lines += [f"  {'an epoch':<34}{self.epoch:>8.0f}"]
        return "\n".join(lines)


def plan(model: str | Path, method: Method = "lora", **arguments: Any) -> Plan:
    """Try the run with few layers and say what it will need with all of them.

    Args:
        arguments: of `PlanOptions`, of the trainer's constructor and of its call, by name.

    Raises:
        ConfigError: what the trainer would refuse.
        TrainingError: the trial failed; with what it said.
    """
    names = {field.name for field in dataclasses.fields(PlanOptions)}
    own = {name: value for name, value in arguments.items() if name in names}
    options = parse(PlanOptions, {"model": model, "method": method, **own}, "plan()")
    rest = {name: value for name, value in arguments.items() if name not in names}
    of, pace = specification(options, rest)
    layers = depth(str(model))
    many = [None] if layers <= MORE else [FEW, MORE]
    steps = None if options.rows is None else pace.steps_of(options.rows)
    return _plan(layers, [attempt(of, few) for few in many], steps)


class Pace(NamedTuple):
    """rows: of the data set that a step is made of. updates: optimizer steps made of them."""

    rows: int
    updates: int

    def steps_of(self, rows: int) -> int:
        """Optimizer steps of a pass over so many rows.

        >>> Pace(rows=4, updates=3).steps_of(10)
        9
        """
        return -(-rows // self.rows) * self.updates


def specification(options: PlanOptions, arguments: dict[str, Any]) -> tuple[Specification, Pace]:
    """What is tried, checked as the trainer will; and how rows become steps."""
    trainer = import_module(f"main.trainer.{options.method}").Trainer
    setup_names = {field.name for field in dataclasses.fields(trainer.setup_class)}
    setup_names |= set(trainer.setup_aliases)
    call_names = {field.name for field in dataclasses.fields(trainer.loop_class)}
    call_names |= set(trainer.loop_aliases)
    own = (field.name for field in dataclasses.fields(PlanOptions))
    raise_all(unknown_keywords(arguments, [*own, *setup_names, *call_names], "plan()"))
    setup = {name: value for name, value in arguments.items() if name in setup_names}
    call = {name: value for name, value in arguments.items() if name not in setup_names}
    places = {"from_pretrained": str(options.model), "data_path": "rows"}
    known = parse(trainer.setup_class, places | setup, "plan()", trainer.setup_aliases)
    of_call = parse(trainer.loop_class, _with_judge(options.method, call), "plan()",
                    trainer.loop_aliases)  # fmt: skip
    length = options.length or known.max_length
    answer = options.answer or length // 2
    if answer >= length:
        raise ConfigError(f"answer={answer} must be less than the {length} tokens of a row.")
    online = options.method in ("grpo", "ppo")
    prompt = length - 1 if online else length - answer
    spelt = {trainer.setup_aliases.get(name, name): value for name, value in setup.items()}
    spelt = {name: value for name, value in spelt.items() if name not in OF_THE_RUN}
    called = {trainer.loop_aliases.get(name, name): value for name, value in call.items()}
    specification = Specification(
        str(options.model), options.method, None, prompt, 1 if online else answer, spelt, called
    )
    return specification, _pace(known, of_call)


def _pace(setup: Any, call: Any) -> Pace:
    size = getattr(call, "per_device_train_batch_size", None) or setup.batch_size
    drawn = getattr(call, "num_generations", 1)
    updates: int = getattr(call, "num_iterations", getattr(call, "ppo_epochs", 1))
    return Pace(max(1, size * call.gradient_accumulation_steps // drawn), updates)


def _with_judge(method: str, call: dict[str, Any]) -> dict[str, Any]:
    return {"reward_func": len, **call} if method in ("grpo", "ppo") else call


def attempt(of: Specification, layers: int | None) -> Trial:
    """In a process of its own.

    Raises:
        TrainingError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "given.json", Path(folder) / "found.json"
        given.write_text(json.dumps(asdict(of) | {"layers": layers}), encoding="utf-8")
        command = [sys.executable, "-m", "main.utils.trial", str(given), str(found)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode or not found.is_file():
            said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
            cause = said[0].removeprefix("main.errors.")
            raise TrainingError(f"the trial with {layers or 'all'} layers failed: {cause}")
        return Trial(**json.loads(found.read_text(encoding="utf-8")))


def _plan(layers: int, trials: Sequence[Trial], steps: int | None) -> Plan:
    whole = extended(trials, layers) if len(trials) > 1 else trials[0]
    gib = 2.0**30
    memory = {
        "Python and libraries": whole.process / gib,
        "base weights": whole.base / gib,
        "adapter, gradients, optimizer": whole.adapter / gib,
        "passes": whole.passes / gib,
    }
    return Plan(layers, memory, whole.start, whole.step, steps and steps * whole.step)


def extended(trials: Sequence[Trial], layers: int) -> Trial:
    """What FEW and MORE layers took, drawn out to `layers`.

    >>> one, two = Trial(1, 2, 0, 3, 0, 0.1), Trial(1, 3, 0, 5, 0, 0.2)  # of 2 and of 4 layers
    >>> extended([one, two], 10)
    Trial(process=1.0, base=6.0, adapter=0.0, passes=11.0, start=0.0, step=0.5)
    """
    few, more = (asdict(trial) for trial in trials)
    share = (layers - FEW) / (MORE - FEW)
    values = {name: few[name] + (more[name] - few[name]) * share for name in few}
    return Trial(**{name: round(max(0.0, value), 9) for name, value in values.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.plan",
        description="Says what a run will need. Arguments of the trainer follow as --name value.",
    )
    parser.add_argument("model", help="folder of the base model")
    known, rest = parser.parse_known_args(arguments)
    print(plan(known.model, **_pairs(rest)))
    return 0


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """--name value -> JSON values, or else the text; a name without a value is True.

    >>> _pairs(["--max_length", "512", "--dtype", "bfloat16", "--bf16"])
    {'max_length': 512, 'dtype': 'bfloat16', 'bf16': True}
    """
    found: dict[str, Any] = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            found[name] = True
        elif name is None:
            raise ConfigError(f"{word!r} belongs to no argument: write --name {word}.")
        else:
            found[name] = _value(word)
    return found


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


if __name__ == "__main__":
    sys.exit(main())
