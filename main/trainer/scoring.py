"""Rows -> completions with rewards, and what is recorded of them."""

import json
from collections.abc import Sequence
from typing import Any

import torch

from main.trainer.advantages import overlong_penalty
from main.trainer.grpo_options import GRPOOptions
from main.trainer.records import markdown_table
from main.trainer.reward_notes import noted_columns
from main.trainer.rewards import Rewards, Scoreable, Scores
from main.trainer.rollout import Completion
from main.trainer.samples import SAMPLE, Sample
from main.trainer.task import Metrics, Row
from main.utils.processes import once_a_share


def complete(
    rows: Sequence[Row],
    completions: Sequence[Completion],
    tokenizer: Any,
    rewards: Rewards,
    options: GRPOOptions,
) -> Metrics:
    """Give each row its completion as a sample with a reward. All processes must call it.

    Returns:
        what the reward functions logged.

    Raises:
        RewardError: on every process, if on one.
    """
    what = Scoreable.of_rows(rows, [completion.ids for completion in completions], tokenizer)
    scores = once_a_share(lambda: rewards.score(what))
    texts = what.texts
    for i, row in enumerate(rows):
        sample = Sample(completions[i], texts[i])
        sample.reward, sample.by_function = float(scores.rewards[i]), scores.by_function[i].tolist()
        sample.notes = scores.notes.of(i)
        if options.overlong_cache:
            length = torch.tensor(len(sample.completion.ids))
            limit, cache = options.max_completion_length, options.overlong_cache
            sample.overlong = float(overlong_penalty(length, limit, cache))
        row[SAMPLE] = sample  # type: ignore[index]
    return scores.notes.metrics


def sample_metrics(samples: Sequence[Sample], rewards: Rewards, options: GRPOOptions) -> Metrics:
    """Means of rewards and lengths, and the share of completions that ended by themselves."""
    if not samples:
        return {}
    values = torch.tensor([sample.reward + sample.overlong for sample in samples])
    table = torch.tensor([sample.by_function for sample in samples])
    count = len(samples)
    metrics = Scores(rewards.names, values, table).metrics()
    metrics["completion_length"] = (sum(len(s.completion.ids) for s in samples), count)
    metrics["ended"] = (sum(sample.completion.ended for sample in samples), count)
    if options.overlong_cache:
        metrics["rewards/overlong/mean"] = (sum(sample.overlong for sample in samples), count)
    return metrics


def samples_table(rows: Sequence[Row], names: Sequence[str]) -> str:
    """A Markdown table: prompt, completion, rewards, advantage, what was logged of the samples."""
    samples: list[Sample] = [row[SAMPLE] for row in rows]
    titles, notes = noted_columns([sample.notes for sample in samples])
    lines = []
    for row, sample, noted in zip(rows, samples, notes, strict=True):
        numbers = [*sample.by_function, sample.reward + sample.overlong, sample.advantage]
        shown = [f"{number:.4g}" for number in numbers]
        lines.append([_last_turn(row["prompt"]), sample.text, *shown, *noted])
    return markdown_table(["prompt", "completion", *names, "reward", "advantage", *titles], lines)


def _last_turn(prompt: str) -> str:
    turns = json.loads(prompt)
    return turns if isinstance(turns, str) else str(turns[-1]["content"])
