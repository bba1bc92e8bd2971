"""A trained reward model: a sequence classifier with one output, as a reward function."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from main.dialogue.renderer import renderer_of
from main.errors import ConfigError, ModelError
from main.models import default_device, load_config, load_tokenizer
from main.models.folder import clear_errors, local_folder
from main.models.harmless import check_weights
from main.system.memory import Room

_ADVICE = "use a smaller reward model, or shorter completions (max_completion_length)."


def is_reward_model(path: str | Path) -> bool:
    """Whether the folder (or hub name) holds a `...ForSequenceClassification` checkpoint."""
    names = getattr(load_config(path), "architectures", None) or []
    return any(name.endswith("ForSequenceClassification") for name in names)


class RewardModel:
    """A reward function of the form `(prompts, completions, **columns) -> list[float]`.

    A dialogue is written by the reward model's own chat template; without one it is the contents of
    the turns, a line each.

    Args:
        path: the checkpoint; it must have exactly one output.
        batch_size: dialogues computed at once.

    Raises:
        ConfigError: more than one output: which of them would be the reward?
        ModelError: weights that are missing or damaged.
    """

    __name__ = "reward_model"

    def __init__(self, path: str | Path, device: Any = None, batch_size: int = 16):
        self.device = torch.device(default_device() if device is None else device)
        self.batch_size = batch_size
        self.tokenizer = load_tokenizer(path)
        self.model = _load(path).to(self.device)
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        limit = getattr(self.model.config, "max_position_embeddings", None) or 2**20
        self.max_length = min(self.tokenizer.model_max_length, limit)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float]:
        """The model's output for each dialogue; beyond `max_length` its beginning is cut off."""
        texts = [self._text(p, c) for p, c in zip(prompts, completions, strict=True)]
        room = Room(self.batch_size, "dialogues of the reward model", _ADVICE, kind=ModelError)
        return [score for scores in room.over(texts, self._score) for score in scores]

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return prompt + completion
        messages = [*prompt, *completion]
        if self.tokenizer.chat_template:
            return renderer_of(self.tokenizer).render(messages)
        return "\n".join(message["content"] for message in messages)

    @torch.no_grad()
    def _score(self, texts: Sequence[str]) -> list[float]:
        self.tokenizer.truncation_side, self.tokenizer.padding_side = "left", "right"
        inputs = self.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self.max_length,
            add_special_tokens=not self.tokenizer.chat_template,
            return_tensors="pt",
        ).to(self.device)
        return self.model(**inputs).logits[:, 0].float().tolist()


def _load(path: str | Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    config = load_config(path)
    if config.num_labels != 1:
        raise ConfigError(
            f"reward_from_pretrained='{path}' has {config.num_labels} outputs; a reward model has "
            "one (num_labels=1)."
        )
    check_weights(local_folder(path), "reward model")
    with clear_errors("reward model", path):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            str(path), config=config, output_loading_info=True, trust_remote_code=False
        )
    if report["missing_keys"]:
        raise ModelError(
            f"reward model '{path}' lacks {len(report['missing_keys'])} tensors, e.g. "
            f"'{min(report['missing_keys'])}': it was not trained to give rewards."
        )
    return model.eval().requires_grad_(False)
