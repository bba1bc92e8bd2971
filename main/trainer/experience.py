"""One batch of experience: completions, their scores, and what models say about their tokens."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from main.loaders.collate import pad
from main.trainer.gae import Credit, Placement, gae, place_scores
from main.trainer.kl import KLEstimator, kl_estimate
from main.trainer.records import markdown_table
from main.trainer.reward_notes import noted_columns
from main.trainer.rewards import Scoreable
from main.trainer.rollout import Completion
from main.trainer.task import Metrics, Row


@dataclass
class Sample:
    """A completion of a row's prompt; every tensor is (T,), one number a token.

    ids: T token ids.
    ended: it ends with an end token; False when it was cut.
    counted: False for a filler that keeps processes in step.
    score: the reward of the whole completion.
    notes: what reward functions logged of it.
    last_value: the critic's value after the last token, 0 for one that ended.
    sampling_logprobs: as the sampler reported them; None for one that was not sampled.
    """

    row: Row
    ids: list[int]
    ended: bool
    counted: bool = True
    score: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)
    last_value: float = 0.0
    sampling_logprobs: Tensor | None = None
    old_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    ref_logprobs: Tensor = field(default_factory=lambda: torch.empty(0))
    entropy: Tensor = field(default_factory=lambda: torch.empty(0))
    old_values: Tensor = field(default_factory=lambda: torch.empty(0))
    advantages: Tensor = field(default_factory=lambda: torch.empty(0))
    returns: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def prompt_ids(self) -> list[int]:
        return self.row["prompt_ids"]

    @property
    def drawn_logprobs(self) -> Tensor:
        """(T,), log-probs that the tokens were drawn with; the policy's own for a gold answer."""
        return self.old_logprobs if self.sampling_logprobs is None else self.sampling_logprobs

    def kl(self, estimator: KLEstimator) -> Tensor:
        """(T,), the divergence from the reference at each token, nats."""
        return kl_estimate(self.old_logprobs, self.ref_logprobs, estimator)


def draw_seed(*parts: object) -> int:
    """A seed that the same parts give on every process and in every run."""
    return random.Random("-".join(map(str, parts))).getrandbits(62)


def drawn_sample(row: Row, completion: Completion) -> Sample:
    """What a sampler drew for the row's prompt."""
    logprobs = torch.tensor(completion.sampling_logprobs)
    return Sample(row, list(completion.ids), completion.ended, sampling_logprobs=logprobs)


def gold_sample(row: Row, seed: int, stop_ids: Sequence[int], counted: bool = True) -> Sample:
    """One of the row's gold answers in the place of a sample."""
    golds = row["gold_ids"]
    ids = list(golds[seed % len(golds)])
    return Sample(row, ids, ids[-1] in stop_ids, counted)


def scoreable(samples: Sequence[Sample], tokenizer: Any) -> Scoreable:
    """What reward functions are given: text without special tokens, answers, further fields.

    `answer`, which the functions of main/utils/reward_func.py read, is the gold answers unless the
    row has a field of that name.
    """
    columns: list[Mapping[str, Any]] = [
        {
            "answer": sample.row["gold"],
            **json.loads(sample.row["columns"]),
            "gold_answers": sample.row["gold"],
            "bad_answers": sample.row["bad"],
        }
        for sample in samples
    ]
    rows, completions = [s.row for s in samples], [s.ids for s in samples]
    return Scoreable.of_rows(rows, completions, tokenizer, columns)


def model_inputs(samples: Sequence[Sample], pad_id: int) -> dict[str, Tensor]:
    """Token ids of prompts and completions, padded on the right.

    A cut completion is followed by one pad token: the state before it is the state after the
    completion's last token, whose value stands for the rest of the episode.

    Returns:
        input_ids, loss_mask (B, L); kept (N,), False for those extra tokens among the N masked.
    """
    extra = [0 if sample.ended else 1 for sample in samples]
    pairs = list(zip(samples, extra, strict=True))
    return {
        "input_ids": pad([s.prompt_ids + s.ids + [pad_id] * e for s, e in pairs], pad_id),
        "loss_mask": pad(
            [[False] * len(s.prompt_ids) + [True] * (len(s.ids) + e) for s, e in pairs], False
        ),
        "kept": torch.cat([torch.arange(len(s.ids) + e) < len(s.ids) for s, e in pairs]),
    }


def split(flat: Tensor, samples: Sequence[Sample]) -> list[Tensor]:
    """The kept tokens of a batch -> (T,) of each sample, on the CPU."""
    return list(flat.cpu().split([len(sample.ids) for sample in samples]))


def token_rewards(
    samples: Sequence[Sample],
    placement: Placement,
    missing_eos_penalty: float,
    kl_coef: float,
    estimator: KLEstimator,
) -> tuple[Tensor, Tensor]:
    """Rewards (B, T) of tokens, and their mask.

    r_t = (score - penalty of a cut completion) at its place - kl_coef * kl_t
    """
    mask = pad([[True] * len(sample.ids) for sample in samples], False)
    scores = torch.tensor([s.score - missing_eos_penalty * (not s.ended) for s in samples])
    divergence = pad_sequence([sample.kl(estimator) for sample in samples], batch_first=True)
    return place_scores(scores, mask, placement) - kl_coef * divergence, mask


def credit(
    samples: Sequence[Sample],
    rewards: Tensor,
    mask: Tensor,
    discount: float,
    gae_lambda: float,
    bootstrap: bool,
) -> None:
    """Set `advantages` (not whitened) and `returns` of the samples."""
    last = torch.tensor([sample.last_value if bootstrap else 0.0 for sample in samples])
    values = pad_sequence([sample.old_values for sample in samples], batch_first=True)
    found: Credit = gae(rewards, values, mask, last, discount, gae_lambda)
    for i, sample in enumerate(samples):
        sample.advantages = found.advantages[i, : len(sample.ids)]
        sample.returns = found.returns[i, : len(sample.ids)]


def describe(samples: Sequence[Sample], estimator: KLEstimator) -> Metrics:
    """What the records say about completions: length, ends, divergence, entropy."""
    number, tokens = len(samples), sum(len(sample.ids) for sample in samples)
    return {
        "completion_length": (float(tokens), number),
        "ended": (float(sum(sample.ended for sample in samples)), number),
        "kl": (sum(float(sample.kl(estimator).sum()) for sample in samples), number),
        "entropy": (sum(float(sample.entropy.sum()) for sample in samples), tokens),
    }


def mismatch(samples: Sequence[Sample]) -> Metrics:
    """How far the sampler's log-probs are from the trainer's, over the sampled tokens."""
    sampled = [sample for sample in samples if sample.sampling_logprobs is not None]
    apart = sum(float((s.drawn_logprobs - s.old_logprobs).abs().sum()) for s in sampled)
    return {"sampling_mismatch": (apart, sum(len(sample.ids) for sample in sampled))}


def table(samples: Sequence[Sample], tokenizer: Any) -> str:
    """Question, completion, reward and notes as a Markdown table; '' for no samples."""
    if not samples:
        return ""
    what = scoreable(samples, tokenizer)
    titles, notes = noted_columns([sample.notes for sample in samples])
    rows = [
        [
            prompt if isinstance(prompt, str) else prompt[-1]["content"],
            text,
            f"{s.score:.3f}",
            *cells,
        ]
        for prompt, text, s, cells in zip(what.prompts, what.texts, samples, notes, strict=True)
    ]
    return markdown_table(["question", "completion", "reward", *titles], rows)
