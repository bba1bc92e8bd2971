"""Signs that a run goes wrong, each told once in plain words; they stop nothing.

They are looked for in what is recorded, so that a single odd step is no sign.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

DIVERGED, RECORDS = 3.0, 3  # times the best loss, for so many records on end
DRIFTED = 2.0  # times the first length, or its part
COLLAPSED = 0.1  # of the first entropy
RUNAWAY = 1.0  # nats a token from the reference
STILL = 10  # steps in which some weight of an adapter moves


@dataclass
class Memory:
    """What the signs are seen against; a part of the run's state.

    first: of each metric that is watched the first value; best: the lowest loss so far.
    high: records on end whose loss was far above it; told: the signs already told.
    """

    first: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    high: int = 0
    told: list[str] = field(default_factory=list)


class Watch:
    """Sees the records of a run, and its weights.

    Args:
        parameters: the trainable ones, before the first step that is watched.
    """

    def __init__(self, memory: Memory, parameters: Mapping[str, nn.Parameter]):
        self.memory, self.parameters = memory, parameters
        self.start = _sums(parameters)
        self.since: int | None = None

    def see(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """One sentence for each sign that was not told before."""
        found = dict(_signs(self.memory, metrics)) | dict(self._stillness(step))
        new = {sign: text for sign, text in found.items() if sign not in self.memory.told}
        self.memory.told += new
        return list(new.values())

    def _stillness(self, step: int) -> Iterator[tuple[str, str]]:
        if not self.start:
            return
        if _sums(self.parameters) != self.start:
            self.start = {}  # alive: nothing left to look for
        elif step >= STILL:
            yield (
                "still",
                f"no weight of the adapter has moved in {step} steps: lr or every gradient is 0. "
                "Look at lr and grad_norm, and with rewards at reward/std.",
            )


def _signs(memory: Memory, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    drawn = "completion_length" in metrics
    if not drawn and "loss" in metrics:  # a policy's loss is no measure of what it has learnt
        yield from _divergence(memory, metrics["loss"])
    for name in ("completion_length", "entropy") if drawn else ():
        if name in metrics:
            memory.first.setdefault(name, metrics[name])
            yield from _drift(name, memory.first[name], metrics[name])
    if drawn and metrics.get("kl", 0.0) > RUNAWAY:
        yield (
            "kl",
            f"the policy is {metrics['kl']:.3g} nats a token away from its start: it may have "
            "forgotten what it could. Raise beta (GRPO) or kl_coef (PPO), or lower lr.",
        )


def _divergence(memory: Memory, loss: float) -> Iterator[tuple[str, str]]:
    best = memory.best
    memory.best = loss if best is None else min(best, loss)
    far = best is not None and best > 0 and loss > DIVERGED * best
    memory.high = memory.high + 1 if far else 0
    if memory.high >= RECORDS:
        yield (
            "divergence",
            f"the loss is {loss:.4g} and has been above {DIVERGED:g} times its best, {best:.4g}, "
            f"for {memory.high} records: the run diverges. Lower lr, or look at the data.",
        )


def _drift(name: str, first: float, now: float) -> Iterator[tuple[str, str]]:
    if name == "entropy" and now < COLLAPSED * first:
        yield (
            "entropy",
            f"the entropy fell from {first:.3g} to {now:.3g} nats a token: the policy repeats "
            "itself and finds nothing new. Raise temperature or the weight of the entropy, or "
            "lower lr.",
        )
    if name == "completion_length" and not first / DRIFTED <= now <= first * DRIFTED:
        yield (
            "length",
            f"completions went from {first:.4g} to {now:.4g} tokens: see in the samples whether "
            "length itself is what the reward pays for.",
        )


def _sums(parameters: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Of each tensor two numbers that hardly stay when it moves; of this process's part."""
    found = {}
    for name, parameter in parameters.items():
        values: Tensor = parameter.detach()
        values = (values.to_local() if hasattr(values, "to_local") else values).double()
        if len(values.flatten()):  # nothing lies here of what is shared out otherwise
            found[name] = float(values.sum()), float(values.square().sum())
    return found
