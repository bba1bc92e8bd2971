"""A call's defaults as the adapter was trained, and one line where a call asks otherwise."""

import logging
from collections.abc import Mapping
from typing import Any

from main.errors import ConfigError
from main.models.training_record import TrainingRecord, template_digest

log = logging.getLogger(__name__)


class AsTrained:
    """What `training.json` means for calls; without a record every call is as it says."""

    def __init__(self, record: TrainingRecord | None = None):
        self.record = record or TrainingRecord()
        self._told: set[str] = set()

    def builds_message(self, asked: bool | None, query: Any, history: Any) -> bool:
        """Whether a call goes through the chat template; `asked` is the caller's word, if any.

        Raises:
            ConfigError: messages for an adapter of plain text, and the caller did not ask for it.
        """
        as_trained = not self.record.plain_text
        if asked is None:
            if self.record.plain_text and (_has_messages(query) or _has_any(history)):
                raise ConfigError(
                    f"this adapter was trained on plain text (loader {self.record.loader}), which "
                    "knows no history, roles or dialogues. Give the text alone, or "
                    "build_message=True to use the chat template all the same."
                )
            return as_trained
        if self.record.method and asked != as_trained:
            self._tell(
                f"build_message={asked}, and the adapter was trained "
                f"{'with' if as_trained else 'without'} a chat template "
                f"(loader {self.record.loader})"
            )
        return asked

    def variables(self, given: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
        """The template's variables: those of the training, unless the call gives others."""
        trained = {k: v for k, v in self.record.template_kwargs.items() if k in known}
        for name in given:
            if name in trained and trained[name] != given[name]:
                self._tell(f"{name}={given[name]!r}, and the adapter was trained with "
                           f"{trained[name]!r}")  # fmt: skip
        return trained | dict(given)

    def tell_differences(self, tokenizer: Any, base_digest: str | None) -> None:
        """Once, when a predictor is made: another base or template than in the training."""
        recorded = self.record
        if base_digest and recorded.base_digest not in ("", base_digest):
            self._tell(
                f"the adapter was trained on another base ('{recorded.base}', or the same "
                "quantised or merged otherwise) than it is put on"
            )
        if recorded.template_digest not in ("", template_digest(tokenizer)):
            self._tell("the chat template is another one than in the adapter's training")

    def _tell(self, difference: str) -> None:
        if difference not in self._told:
            self._told.add(difference)
            log.warning("Other than in training: %s.", difference)


def _has_messages(query: Any) -> bool:
    return not all(isinstance(q, str) for q in (query if isinstance(query, list) else [query]))


def _has_any(history: Any) -> bool:
    return any(not isinstance(item, list | None) or item for item in history or [])
