"""Experience of PPO: gold answers that stand for samples, rewards of tokens, credit."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from main.loaders.collate import pad
from main.trainer.online.kl import KLEstimator, kl_estimate
from main.trainer.online.sample import Prompt, Sample
from main.trainer.ppo.gae import gae, place_scores
from main.trainer.ppo.options import Placement


def gold_sample(prompt: Prompt, seed: int, stop_ids: Sequence[int]) -> Sample:
    """One of the row's gold answers in the place of a sample."""
    golds = prompt.row["gold_ids"]
    number = seed % len(golds)
    ids = list(golds[number])
    return Sample(prompt, ids, ids[-1] in stop_ids, prompt.row["gold"][number])


def token_rewards(
    samples: Sequence[Sample],
    scores: Tensor,
    placement: Placement,
    kl_coef: float,
    estimator: KLEstimator,
    steps: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Rewards (B, T) of drawn tokens, and their mask: r_t = score at its place - kl_coef * kl_t.

    What was added between turns is left out here: the state before a turn follows the last token
    of the one before.

    Args:
        scores: (B,), of whole completions.
        steps: of each sample the rewards of its tokens by an environment, part of its score.
    """
    mask = pad([[True] * int(sample.drawn.sum()) for sample in samples], False)
    kl = [kl_estimate(s.old_logprobs, s.ref_logprobs, estimator)[s.drawn] for s in samples]
    divergence = pad_sequence(kl, batch_first=True)
    if steps is None:
        return place_scores(scores, mask, placement) - kl_coef * divergence, mask
    of_steps = [step[s.drawn] for step, s in zip(steps, samples, strict=True)]
    placed = pad_sequence(of_steps, batch_first=True).to(scores.dtype)
    scores = scores - placed.sum(1)
    return place_scores(scores, mask, placement) + placed - kl_coef * divergence, mask


def credit(
    samples: Sequence[Sample],
    rewards: Tensor,
    mask: Tensor,
    last_values: Tensor,
    discount: float,
    gae_lambda: float,
) -> None:
    """Set `advantages` (not whitened) and `returns` of the samples; 0 where nothing was drawn.

    Args:
        rewards, mask: (B, T), of drawn tokens.
        last_values: (B,), of the state after the last token; 0 where the episode ends there.
    """
    values = pad_sequence([sample.old_values[sample.drawn] for sample in samples], batch_first=True)
    found = gae(rewards, values, mask, last_values, discount, gae_lambda)
    for i, sample in enumerate(samples):
        sample.advantages = _spread(found.advantages[i], sample.drawn)
        sample.returns = _spread(found.returns[i], sample.drawn)


def _spread(values: Tensor, drawn: Tensor) -> Tensor:
    """Values of drawn tokens, padded, at their places."""
    return values.new_zeros(len(drawn)).masked_scatter(drawn, values)


def after_the_end(samples: Sequence[Sample], pad_id: int) -> dict[str, Tensor]:
    """Inputs (B, L) that select the state after the last token of each completion.

    The pad token behind it is never seen: what predicts it is that state.
    """
    return {
        "input_ids": pad([s.prompt.ids + s.ids + [pad_id] for s in samples], pad_id),
        "loss_mask": pad([[False] * s.length + [True] for s in samples], False),
    }
