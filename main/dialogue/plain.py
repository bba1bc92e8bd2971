"""Plain text -> token ids, without a chat template: context and target, or a prompt."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from main.dialogue.tokens import Encoded, TextEncoder
from main.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PlainText:
    """Texts as the tokenizer reads them, with the BOS that it adds itself, once.

    Raises:
        ModelError: a slow tokenizer.
    """

    date_written = ""  # as of a chat template

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", encoder: TextEncoder | None = None):
        self.tokenizer = tokenizer
        self.encoder = encoder or TextEncoder(tokenizer)
        self.prefix_ids = self._prefix_ids()

    def encode_batch(self, pairs: Sequence[tuple[str, str]]) -> list[Encoded]:
        """(context, target) pairs, each tokenised as one text; trained: the target and EOS.

        Raises:
            ModelError: the tokenizer has no end token.
        """
        if self.tokenizer.eos_token_id is None:
            raise ModelError(
                "The tokenizer has no end token, so a model trained on context/target rows would "
                "never stop. Set tokenizer.eos_token."
            )
        texts = [context + target for context, target in pairs]
        spans = [[(len(context), len(context + target))] for context, target in pairs]
        return [self._framed(encoded) for encoded in self.encoder.encode(texts, spans)]

    def encode_prompt(self, prompt: str | Any) -> list[int]:
        """Ids of a text to be continued.

        Raises:
            DataError: a list of messages, which needs a chat template.
        """
        if not isinstance(prompt, str):
            raise DataError(
                "the prompt is a list of messages and the tokenizer has no chat template; "
                "set tokenizer.chat_template, or write the prompt as a string."
            )
        return self.prefix_ids + self.encoder.ids([prompt])[0]

    def control_problem(self, prompt: Any) -> str:
        """Always '': control tokens in plain text are the author's own frame."""
        return ""

    def fingerprint(self) -> str:
        """Changes with everything that changes the ids of a text."""
        state = self.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
        # What stands before is the state of truncation and padding, which is not used here.
        state = state[state.index('"added_tokens"') :]
        return hashlib.sha256(f"{state}{self.tokenizer.eos_token}".encode()).hexdigest()

    def _framed(self, encoded: Encoded) -> Encoded:
        ids, mask, turns = encoded[:3]
        eos, shift = self.tokenizer.eos_token_id, len(self.prefix_ids)
        tail = [] if ids[-1:] == [eos] else [eos]
        (begin, end) = turns[0]
        return Encoded(
            [*self.prefix_ids, *ids, *tail],
            [False] * shift + mask + [True] * len(tail),
            [(begin + shift, end + shift + len(tail))],
        )

    def _prefix_ids(self) -> list[int]:
        """What the tokenizer puts before a text: BOS or nothing."""
        bare = self.encoder.ids(["a"])[0]
        framed = self.tokenizer("a").input_ids
        places = (i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        return framed[: next(places, 0)]
