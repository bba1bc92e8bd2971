"""Prompts -> completions with the log-probabilities that they were sampled with.

One interface, several samplers. Completions are token ids from the sampler itself, never text that
was encoded again. Another sampler follows the policy by its own means. With tools a sampler draws
each turn of an episode for itself: its prompt is all that came before (main/dialogue/playing.py).
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch

from main.dialogue.episodes import Drawn
from main.predictor.decode import decode
from main.predictor.decoding import Decoding, batches
from main.predictor.sampling import GenerationOptions
from main.trainer.policy.logprobs import scoring
from main.trainer.rollout.options import SamplingOptions


class Completion(NamedTuple):
    """What was sampled for one prompt.

    ids: T token ids, the end token among them if the completion `ended`.
    sampling_logprobs: T log-probabilities, nats, at the sampling temperature.
    ended: False when the length limit cut the completion.
    """

    ids: list[int]
    sampling_logprobs: list[float]
    ended: bool

    @property
    def drawn(self) -> Drawn:
        """As a turn of an episode."""
        return Drawn(self.ids, self.sampling_logprobs, self.ended)


class Sampler(ABC):
    """Draws completions from the current policy."""

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        greedy: bool = False,
        limits: Sequence[int] | None = None,
    ) -> list[Completion]:
        """One completion for each prompt, in order.

        Args:
            prompts: token ids; equal prompts that follow each other are a group.
            seeds: one for each prompt; the same seed and policy give the same completion, whatever
                else is in the batch.
            greedy: the likeliest token always, for evaluation.
            limits: most tokens of each completion; max_completion_length by default.
        """

    def close(self) -> None:  # noqa: B027 (optional to override)
        """Release processes and memory."""


class HFSampler(Sampler):
    """Samples with the policy itself, in this process: it cannot be stale.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        stop_ids: tokens that end a completion.
        batch_size: most completions that grow at once.
        max_tokens: most tokens, prompts and completions together, of a batch.
    """

    def __init__(
        self,
        policy: Any,
        options: SamplingOptions,
        stop_ids: Collection[int],
        pad_id: int,
        batch_size: int = 64,
        max_tokens: int = 65_536,
    ):
        self.policy, self.options = policy, options
        self.stop_ids, self.pad_id = frozenset(stop_ids), pad_id
        self.batch_size, self.max_tokens = batch_size, max_tokens

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        greedy: bool = False,
        limits: Sequence[int] | None = None,
    ) -> list[Completion]:
        rows = decoder_rows(prompts, seeds, self.options.limits(prompts, limits))
        settings = generation_options(self.options, greedy)
        for batch in batches(rows, self.batch_size, self.max_tokens):
            grow(self.policy, batch, settings, self.stop_ids, self.pad_id, logprobs=True)
        return [completion_of(row) for row in rows]


def grow(
    policy: Any,
    batch: Sequence[Decoding],
    settings: GenerationOptions,
    stop_ids: Collection[int],
    pad_id: int,
    **how: Any,
) -> None:
    """Let the rows of a batch grow to their ends, without gradient and dropout.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        how: further arguments of `decode`.
    """
    # Every new token has another length of the cache: compiled layers would not pay.
    with scoring(policy), torch.compiler.set_stance("force_eager"):
        for _ in decode(policy, batch, settings, stop_ids, pad_id, **how):
            pass


def decoder_rows(
    prompts: Sequence[list[int]], seeds: Sequence[int], limits: Sequence[int]
) -> list[Decoding]:
    """What the decoder of the predictors works on; each prompt draws with a seed of its own."""
    return [
        Decoding(i, list(ids), limit, torch.Generator().manual_seed(seed % 2**63))
        for i, (ids, seed, limit) in enumerate(zip(prompts, seeds, limits, strict=True))
    ]


def generation_options(options: SamplingOptions, greedy: bool) -> GenerationOptions:
    """How the next token is chosen, in the words of the predictors."""
    if greedy:
        return GenerationOptions(temperature=0, repetition_penalty=options.repetition_penalty)
    return GenerationOptions(
        temperature=options.temperature,
        do_sample=True,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
    )


def completion_of(row: Decoding) -> Completion:
    """What a finished row of the decoder amounts to."""
    ended = row.stop_id is not None
    ids = [*row.completion_ids, row.stop_id] if row.stop_id is not None else row.completion_ids
    return Completion(ids, row.logprobs, ended)
