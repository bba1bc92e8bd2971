"""Dialogues -> token ids through the tokenizer's own chat template.

What is trained is what inference produces: the ids before every trained turn are what
`encode_prompt` gives for the dialogue up to there.
"""

import copy
import datetime
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from main.dialogue.accounts import Accountant, Dialogue
from main.dialogue.control import control_problem
from main.dialogue.drafts import Draft, Which, drafts_of, last_draft, whole_draft
from main.dialogue.frame import probe_dialogue
from main.dialogue.plain import PlainText
from main.dialogue.renderer import Messages, Renderer
from main.dialogue.tokens import Encoded
from main.errors import DataError, MissingFileError, ModelError
from main.vision import VisionProcessor, visuals_in
from main.vision.image import check_pixels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "Dialogue", "Encoded"]

Tools = Sequence[Mapping[str, Any]] | None
TrainTurns = Literal["all", "last"]
# Raised when the same dialogue would become other ids.
VERSION = 2


class ChatTemplate:
    """A tokenizer's chat template, with the spans of assistant turns found by a probe.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        vision: of a model that takes images; without it a dialogue with images is refused.
        train_turns: of a dialogue, every turn of the assistant's or the last one alone.
        today: the date for a template that writes one; None = that of this moment, kept.
        template_kwargs: variables of the template, e.g. enable_thinking=False.

    Raises:
        ModelError: no chat template, a slow tokenizer, or a template whose turns cannot be found.
        ConfigError: a variable that the template does not read.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vision: VisionProcessor | None = None,
        train_turns: TrainTurns = "all",
        today: datetime.date | None = None,
        **template_kwargs: Any,
    ):
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template. Set "
                "tokenizer.chat_template to the model family's own, use an instruct model, or "
                "train on context/target rows with loader_name='LLM_Pure'."
            )
        self.tokenizer, self.vision, self.train_turns = tokenizer, vision, train_turns
        self.template_kwargs = template_kwargs
        self.tools: Tools = None
        self.renderer = Renderer(tokenizer, vision, template_kwargs, today or datetime.date.today())
        self.plain = PlainText(tokenizer, self.renderer.encoder)
        self.renderer.refuse_unread(template_kwargs)
        self.frame = self.renderer.frame  # a template whose turns cannot be found ends here
        self.accountant = Accountant(self.renderer)
        spans = self.encode(probe_dialogue()).turns
        if len(spans) != 2 or any(begin == end for begin, end in spans):
            raise ModelError("no token of an assistant turn would be trained.")

    def showing(self, tools: Tools) -> "ChatTemplate":
        """The same template, which shows these tools in every dialogue."""
        other = copy.copy(self)
        other.tools = tools
        return other

    def render(
        self, messages: Messages, add_generation_prompt: bool = False, tools: Tools = None
    ) -> str:
        """The dialogue as text, special tokens included.

        Raises:
            DataError: the template refuses the dialogue (some allow no system turn).
        """
        return self.renderer.render(messages, add_generation_prompt, tools)

    def encode(self, messages: Messages | Dialogue, which: Which = "all") -> Encoded:
        """Ids and loss mask of a dialogue in one text; trained are the assistant's turns.

        Args:
            which: all turns, as they stand in it; only those behind the prompt of inference
                ('shared'); or the last turn behind its prompt ('last').

        Raises:
            DataError: a turn that the template does not write, or that contains a control token.
        """
        return self.encode_batch([messages], which)[0]

    def encode_batch(
        self, dialogues: Sequence[Messages | Dialogue], which: Which = "all"
    ) -> list[Encoded]:
        """`encode` for many dialogues at once; the first that cannot be encoded raises."""
        drafts = []
        for dialogue in map(self._with_tools, map(_dialogue, dialogues)):
            self._check(dialogue)
            if which == "last":
                drafts.append(last_draft(self.accountant, dialogue))
            else:
                drafts.append(whole_draft(self.accountant, dialogue, which == "shared"))
        return [_raised(encoded) for encoded in self._encode(drafts)]

    def try_encode_rows(
        self, dialogues: Sequence[Dialogue]
    ) -> list[list[tuple[Draft, Encoded]] | DataError]:
        """What is trained of each dialogue, each turn once and behind the prompt of inference.

        One text for the turns that can share it, one for each that cannot. A dialogue that cannot
        be encoded has its error in its place.
        """
        drafts = [self._drafts(dialogue) for dialogue in dialogues]
        encoded = iter(self._encode([d for ds in drafts if not isinstance(ds, DataError)
                                     for d in ds]))  # fmt: skip
        return [self._row(row, encoded) for row in drafts]

    def encode_prompt(
        self,
        messages: Messages | str,
        tools: Tools = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of what asks for the next assistant turn, as at inference; a string is plain text.

        Raises:
            DataError: the template refuses the dialogue, or does not write one of its strings.
        """
        if isinstance(messages, str):
            if self.tools:
                raise DataError("a prompt of plain text uses no chat template, which shows tools.")
            return self.plain.encode_prompt(messages)
        dialogue = self._with_tools(Dialogue(messages, tools, variables))
        account = self.accountant.account(dialogue, asks=True)
        problem = account.problem(account.lost)
        if problem:
            raise DataError(problem)
        encoded = self.plain.encoder.encode([account.text], [[]], [account.borders])
        ids = encoded[0].input_ids
        return ids if self.vision is None else self.vision.expand(ids, visuals_in(messages)).ids

    def control_problem(self, messages: Messages | str, tools: Tools = None) -> str:
        """One sentence when a text contains a control token such as "<|im_end|>", else ''."""
        if isinstance(messages, str):
            return ""
        return control_problem(messages, tools, self.renderer.control)

    @property
    def date_written(self) -> str:
        """The date that the template writes into a dialogue; '' if it writes none."""
        return self.renderer.date_written

    def fingerprint(self) -> str:
        """Changes with everything that changes the ids of a dialogue."""
        digest = hashlib.sha256(f"{VERSION} {self.plain.fingerprint()}".encode())
        for source in self.renderer.sources:
            digest.update(source.encode())
        special = self.tokenizer.special_tokens_map
        settings: list[Any] = [special, self.template_kwargs, self.train_turns]
        settings += [self.tools] if self.tools else []
        kwargs = json.dumps(settings, sort_keys=True, default=repr)
        digest.update(kwargs.encode())
        digest.update(self.date_written.encode())
        digest.update(self.vision.fingerprint().encode() if self.vision else b"")
        return digest.hexdigest()

    def _drafts(self, dialogue: Dialogue) -> list[Draft] | DataError:
        try:
            dialogue = self._with_tools(dialogue)
            self._check(dialogue)
            drafts = drafts_of(self.accountant, dialogue, self.train_turns)
            for visual in visuals_in(dialogue.messages):
                check_pixels(visual)
        except DataError as error:
            return error
        except MissingFileError as error:
            return DataError(str(error))
        return drafts

    def _with_tools(self, dialogue: Dialogue) -> Dialogue:
        if not self.tools:
            return dialogue
        if dialogue.tools:
            raise DataError(
                "'tools': the row has tools of its own beside the functions of the call. Leave "
                "them out of the rows; the functions' schemas are shown."
            )
        return dialogue._replace(tools=self.tools)

    def _check(self, dialogue: Dialogue) -> None:
        problem = self.control_problem(dialogue.messages, dialogue.tools)
        if problem:
            raise DataError(problem)

    def _row(
        self, drafts: list[Draft] | DataError, encoded: Iterator[Encoded | DataError]
    ) -> list[tuple[Draft, Encoded]] | DataError:
        if isinstance(drafts, DataError):
            return drafts
        results = [next(encoded) for _ in drafts]
        for result in results:
            if isinstance(result, DataError):
                return result
        return list(zip(drafts, results, strict=True))  # type: ignore[arg-type]

    def _encode(self, drafts: Sequence[Draft]) -> list[Encoded | DataError]:
        encoded = self.plain.encoder.encode(
            [draft.text for draft in drafts],
            [draft.spans for draft in drafts],
            [draft.cuts for draft in drafts],
        )
        return [
            self._with_images(e._replace(weights=d.weights), d)
            for e, d in zip(encoded, drafts, strict=True)
        ]

    def _with_images(self, encoded: Encoded, draft: Draft) -> Encoded | DataError:
        """Every placeholder of an image repeated for its features."""
        if self.vision is None:
            return encoded
        visuals = visuals_in(draft.dialogue.messages)
        try:
            ids, images, moved = self.vision.expand(encoded.input_ids, visuals)
        except (DataError, MissingFileError) as error:
            return DataError(str(error))
        turns = [(moved[begin], moved[end]) for begin, end in encoded.turns]
        mask = [False] * len(ids)
        for begin, end in turns:
            mask[begin:end] = [True] * (end - begin)
        return Encoded(ids, mask, turns, images, encoded.weights)


def _dialogue(given: Messages | Dialogue) -> Dialogue:
    return given if isinstance(given, Dialogue) else Dialogue(given)


def _raised(result: Encoded | DataError) -> Encoded:
    if isinstance(result, DataError):
        raise result
    return result
