"""What the records say about completions: the same words for every method that draws them."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from main.trainer.loop.records import markdown_table
from main.trainer.loop.task import Metrics
from main.trainer.online.kl import KLEstimator, kl_estimate
from main.trainer.online.sample import Sample
from main.trainer.online.statistics import moments
from main.trainer.rewards.notes import noted_columns


def describe(samples: Sequence[Sample], names: Sequence[str]) -> Metrics:
    """Means of the reward and its parts `names`, of drawn tokens, and the share that ended."""
    count = len(samples)
    found: Metrics = {}
    for name in names:
        values = [sample.parts[name] for sample in samples if not math.isnan(sample.parts[name])]
        found[f"rewards/{name}/mean"] = (math.fsum(values), len(values))
    found["reward/mean"] = (math.fsum(sample.reward for sample in samples), count)
    found["completion_length"] = (sum(int(sample.drawn.sum()) for sample in samples), count)
    found["ended"] = (sum(sample.ended for sample in samples), count)
    return found


def describe_episodes(samples: Sequence[Sample]) -> Metrics:
    """Of a completion: its turns, the calls of tools in it, those that failed, their seconds."""
    played = [sample.episode for sample in samples if sample.episode is not None]
    sums = {
        "turns": sum(episode.turns for episode in played),
        "tools/calls": sum(episode.calls for episode in played),
        "tools/failures": sum(episode.failures for episode in played),
        "tools/seconds": math.fsum(episode.seconds for episode in played),
    }
    return {name: (total, len(samples)) for name, total in sums.items()}


def reward_spread(samples: Sequence[Sample]) -> float:
    """Standard deviation of the rewards of a draw over all processes, divided by their number."""
    rewards = torch.tensor([sample.reward for sample in samples], dtype=torch.float64)
    return moments([rewards]).variance ** 0.5


def sampling_mismatch(samples: Sequence[Sample]) -> Metrics:
    """How far the sampler's log-probs are from the trainer's, over the sampled tokens, nats."""
    apart = [(s.sampling_logprobs - s.old_logprobs).abs() for s in samples]
    known = [~values.isnan() for values in apart]
    total = sum(float(v[k].sum()) for v, k in zip(apart, known, strict=True))
    return {"sampling_mismatch": (total, sum(int(k.sum()) for k in known))}


def divergence(samples: Sequence[Sample], estimator: KLEstimator) -> Metrics:
    """`kl` and entropy, nats a token, and the sum over a completion's tokens as `kl/completion`."""
    tokens = sum(int(sample.mask.sum()) for sample in samples)
    kls = [kl_estimate(s.old_logprobs, s.ref_logprobs, estimator)[s.mask] for s in samples]
    total = math.fsum(float(kl.sum()) for kl in kls)
    entropy = math.fsum(float(sample.entropy[sample.mask].sum()) for sample in samples)
    return {
        "kl": (total, tokens),
        "kl/completion": (total, len(samples)),
        "entropy": (entropy, tokens),
    }


def samples_table(samples: Sequence[Sample], names: Sequence[str]) -> str:
    """A Markdown table: prompt, completion, rewards, mean advantage, what was logged of each."""
    titles, notes = noted_columns([sample.notes for sample in samples])
    lines = []
    for sample, noted in zip(samples, notes, strict=True):
        numbers = [*(sample.parts[name] for name in names), sample.reward]
        known = sample.advantages[sample.mask] if len(sample.advantages) else sample.advantages
        credit = f"{float(known.mean()):.4g}" if len(known) else ""
        shown = [f"{number:.4g}" for number in numbers]
        said = shown_episode(sample.messages) if len(sample.messages) > 1 else sample.text
        lines.append([last_turn(sample.row["prompt"]), said, *shown, credit, *noted])
    return markdown_table(["prompt", "completion", *names, "reward", "advantage", *titles], lines)


def shown_episode(messages: Sequence[Mapping[str, Any]]) -> str:
    """What was said after a prompt, a line for each text, call and answer of the outside."""
    lines = []
    for message in messages:
        calls = [call["function"] for call in message.get("tool_calls") or ()]
        mark = "" if message["role"] == "assistant" else f"[{message['role']}] "
        lines += [mark + str(message["content"])] if message.get("content") else []
        lines += [f"{c['name']}({json.dumps(c['arguments'], ensure_ascii=False)})" for c in calls]
    return "\n".join(lines)


def last_turn(prompt: str) -> str:
    """What was said last in a row's prompt (JSON of a string or of messages)."""
    turns = json.loads(prompt)
    return turns if isinstance(turns, str) else str(turns[-1]["content"])
