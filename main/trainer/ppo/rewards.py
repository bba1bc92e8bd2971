"""Where PPO's rewards come from: an encoder or a reward model, and functions of the user."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from main.errors import ConfigError
from main.models.encoder import SentenceEncoder
from main.trainer.ppo.options import PPOOptions
from main.trainer.rewards.functions import Rewards
from main.trainer.rewards.model import RewardModel, is_reward_model
from main.trainer.rewards.notes import TrainerState
from main.trainer.rewards.similarity import SimilarityReward


def load_reward_source(
    path: str | Path | None, device: Any
) -> SentenceEncoder | RewardModel | None:
    """What `reward_from_pretrained` names: a classifier is a reward model, else an encoder."""
    if path is None:
        return None
    return RewardModel(path, device) if is_reward_model(path) else SentenceEncoder(path, device)


def make_rewards(
    source: SentenceEncoder | RewardModel | None,
    options: PPOOptions,
    progress: Callable[[], TrainerState],
) -> Rewards:
    """All rewards of a run, that of `reward_from_pretrained` first; `progress` as in `Rewards`.

    Raises:
        ConfigError: there is none, or `reward_func` or `reward_weights` cannot be used.
    """
    functions: list[Any] = []
    if isinstance(source, SentenceEncoder):
        functions.append(SimilarityReward(source, options.weight_for_cos_and_jaccard))
    elif source is not None:
        functions.append(source)
    given = options.reward_func
    functions += given if isinstance(given, list | tuple) else [given] if given else []
    if not functions and options.environment_factory is None:
        raise ConfigError(
            "PPO needs a reward: give reward_from_pretrained (a sentence encoder or a reward "
            "model) to the constructor, or reward_func or an environment_factory to the call."
        )
    return Rewards(functions, options.reward_weights, progress, options.patience)
