"""A completion on its way: drawn by the rollout, judged by rewards and credit, read by the loss."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from main.dialogue.episodes import Episode
from main.trainer.loop.task import Row


class Prompt(NamedTuple):
    """What the policy is asked: the `number`-th completion of a row of the data set."""

    row: Row
    number: int = 0

    @property
    def ids(self) -> list[int]:
        return list(self.row["prompt_ids"])


def _unknown() -> Tensor:
    return torch.empty(0)


@dataclass
class Sample:
    """One completion of a prompt, T tokens, and what is found out about it.

    A tensor that nobody has filled in yet is empty; every other one is (T,), a number a token.

    prompt: the row that it answers, and which of that row's completions it is.
    ids: T token ids.
    ended: the last one is an end token; False where the length limit cut the completion.
    text: the ids as text, without special tokens.
    episode: what it was played in; None where it stands for a drawn one.
    drawn: bool, True for the tokens that the policy drew (or that stand for drawn ones, as a gold
        answer does), False for what tools or an environment added between them.
    mask: bool, True for the tokens that the loss counts: drawn ones.
    sampling_logprobs: as the sampler reported them; NaN for a token that was not sampled.
    step_rewards: of an environment, at the last token of each turn; float64.
    old_logprobs, ref_logprobs: by the policy before the first update, and by its reference;
        teacher_logprobs: by a teacher, where there is one.
    entropy: nats, of the policy before the first update.
    forks: bool, the tokens of the draw with the most entropy, of which alone the policy learns.
    old_values, returns: the critic's value before each token, and what it is to learn.
    advantages: the credit of each token.
    reward: the whole reward of the completion; parts: what it is made of, by the name of the
        reward function, NaN where one does not apply.
    notes: what reward functions logged of it: for the records only.
    """

    prompt: Prompt
    ids: list[int]
    ended: bool
    text: str = ""
    episode: Episode | None = None
    drawn: Tensor = field(default_factory=_unknown)
    mask: Tensor = field(default_factory=_unknown)
    sampling_logprobs: Tensor = field(default_factory=_unknown)
    step_rewards: Tensor = field(default_factory=_unknown)
    old_logprobs: Tensor = field(default_factory=_unknown)
    ref_logprobs: Tensor = field(default_factory=_unknown)
    teacher_logprobs: Tensor = field(default_factory=_unknown)
    entropy: Tensor = field(default_factory=_unknown)
    forks: Tensor = field(default_factory=_unknown)
    old_values: Tensor = field(default_factory=_unknown)
    returns: Tensor = field(default_factory=_unknown)
    advantages: Tensor = field(default_factory=_unknown)
    reward: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.drawn):
            self.drawn = torch.ones(len(self.ids), dtype=torch.bool)
        if not len(self.mask):
            self.mask = self.drawn.clone()
        if not len(self.sampling_logprobs):
            self.sampling_logprobs = torch.full((len(self.ids),), torch.nan)
        if not len(self.step_rewards):
            self.step_rewards = torch.zeros(len(self.ids), dtype=torch.float64)

    @classmethod
    def of(cls, prompt: Prompt, episode: Episode, text: str) -> "Sample":
        return cls(
            prompt,
            episode.completion_ids,
            episode.ended,
            text,
            episode,
            drawn=torch.tensor(episode.drawn, dtype=torch.bool),
            sampling_logprobs=torch.tensor(episode.logprobs),
            step_rewards=torch.tensor(episode.rewards, dtype=torch.float64),
        )

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """What was said after the prompt; [] where nobody read it."""
        return self.episode.said if self.episode is not None else []

    @property
    def row(self) -> Row:
        return self.prompt.row

    @property
    def key(self) -> tuple[int, int]:
        """What names it in every process: source row and number."""
        return self.row["row"], self.prompt.number

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.row["prompt_ids"]) + len(self.ids)


def seed_of(seed: int, step: int, prompt: Prompt, attempt: int = 0) -> int:
    """The seed of a completion; it does not depend on processes, batches or anything else."""
    name = f"{seed}-{step}-{prompt.row['row']}-{prompt.number}-{attempt}"
    return random.Random(name).getrandbits(63)


def note_tokens(samples: Sequence[Sample], **values: Tensor) -> None:
    """Set fields of samples from (N,) values of all their tokens, sample after sample."""
    lengths = [len(sample.ids) for sample in samples]
    for name, flat in values.items():
        for sample, part in zip(samples, flat.detach().cpu().split(lengths), strict=True):
            setattr(sample, name, part)
