"""Dialogues -> token ids through the tokenizer's own chat template, each rendered once, whole.

What is trained is what inference produces: `encode_prompt(messages[:i])` equals the ids before the
i-th turn wherever the template permits (some rewrite earlier turns, Qwen3 its thinking).
"""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from main.errors import ConfigError, DataError, MissingFileError, ModelError
from main.loaders.layout import probe, probe_dialogue
from main.loaders.plain import PlainText
from main.loaders.spans import Messages, control_problem, find_starts, find_turns
from main.loaders.tokens import Encoded
from main.options import nearest
from main.vision import VisionProcessor, template_message, visuals_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTemplate", "Encoded", "get_template"]

# A tag of transformers' own, which plain jinja2 does not parse.
_GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")
# Variables that a template reads and a caller does not choose.
_NOT_OPTIONS = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}


class ChatTemplate:
    """A tokenizer's chat template, with the spans of assistant turns found by a probe.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        vision: of a model that takes images; without it a dialogue with images is refused.
        template_kwargs: variables of the template, e.g. enable_thinking=False.

    Raises:
        ModelError: no chat template, a slow tokenizer, or a template whose turns cannot be found.
        ConfigError: a variable that the template does not read.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        vision: VisionProcessor | None = None,
        **template_kwargs: Any,
    ):
        if not tokenizer.chat_template:
            raise ModelError(
                f"The tokenizer {tokenizer.name_or_path!r} has no chat template. Set "
                "tokenizer.chat_template to the model family's own, use an instruct model, or "
                "train on context/target rows with loader_name='LLM_Pure'."
            )
        self.tokenizer, self.vision = tokenizer, vision
        self.template_kwargs = template_kwargs
        self.plain = PlainText(tokenizer)
        self._parts = False
        self._roles: dict[str, str] = {}
        _refuse_unread(str(tokenizer.get_chat_template()), template_kwargs)
        self._probe()

    def render(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        """The dialogue as text, special tokens included.

        Raises:
            DataError: the template refuses the dialogue (some allow no system turn).
        """
        try:
            text: Any = self.tokenizer.apply_chat_template(
                [self._adapt(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self.template_kwargs,
            )
        except Exception as error:  # a template may raise anything
            raise DataError(f"the chat template refuses this dialogue: {error}") from error
        return text if self.vision is None else self.vision.write(text, visuals_in(messages))

    def encode(self, messages: Messages) -> Encoded:
        """Ids and loss mask of a dialogue; trained are the assistant turns with their end tokens.

        Raises:
            DataError: a turn that the template does not write, or that contains a control token.
        """
        return self.encode_batch([messages])[0]

    def encode_batch(self, dialogues: Sequence[Messages]) -> list[Encoded]:
        """`encode` for many dialogues at once; the first that cannot be encoded raises."""
        results = self.try_encode_batch(dialogues)
        for result in results:
            if isinstance(result, DataError):
                raise result
        return results  # type: ignore[return-value]

    def try_encode_batch(self, dialogues: Sequence[Messages]) -> list[Encoded | DataError]:
        """Like `encode_batch`, with the error of a dialogue in its place."""
        prepared = [self._prepare(dialogue) for dialogue in dialogues]
        good = [item for item in prepared if not isinstance(item, DataError)]
        encoded = iter(self.plain.encoder.encode([t for t, _ in good], [s for _, s in good]))
        return [
            p if isinstance(p, DataError) else self._with_images(next(encoded), dialogue)
            for p, dialogue in zip(prepared, dialogues, strict=True)
        ]

    def encode_prompt(self, messages: Messages | str) -> list[int]:
        """Ids of what asks for the next assistant turn, as at inference; a string is plain text."""
        if isinstance(messages, str):
            return self.plain.encode_prompt(messages)
        text = self.render(messages, add_generation_prompt=True)
        starts = find_starts(text, messages, self.layout, self._render, asks=True)
        spans = [(start, start) for start in starts]
        ids = self.plain.encoder.encode([text], [spans])[0].input_ids
        return ids if self.vision is None else self.vision.expand(ids, visuals_in(messages)).ids

    def control_problem(self, messages: Messages | str) -> str:
        """One sentence when a text contains a control token such as "<|im_end|>", else ''."""
        if isinstance(messages, str):
            return ""
        return control_problem(messages, self._control)

    def fingerprint(self) -> str:
        """Changes with everything that changes the ids of a dialogue."""
        digest = hashlib.sha256(self.plain.fingerprint().encode())
        digest.update(str(self.tokenizer.get_chat_template()).encode())
        special = self.tokenizer.special_tokens_map
        kwargs = json.dumps([special, self.template_kwargs], sort_keys=True, default=repr)
        digest.update(kwargs.encode())
        digest.update(self.vision.fingerprint().encode() if self.vision else b"")
        return digest.hexdigest()

    def _prepare(self, messages: Messages) -> tuple[str, list[tuple[int, int]]] | DataError:
        try:
            problem = self.control_problem(messages)
            if problem:
                raise DataError(problem)
            text = self.render(messages) + self.layout.stop
            return text, find_turns(text, messages, self.layout, self._render)
        except DataError as error:
            return error

    def _with_images(self, encoded: Encoded, messages: Messages) -> Encoded | DataError:
        """Every placeholder of an image repeated for its features."""
        if self.vision is None:
            return encoded
        try:
            ids, images, moved = self.vision.expand(encoded.input_ids, visuals_in(messages))
        except (DataError, MissingFileError) as error:
            return DataError(str(error))
        turns = [(moved[begin], moved[end]) for begin, end in encoded.turns]
        mask = [False] * len(ids)
        for begin, end in turns:
            mask[begin:end] = [True] * (end - begin)
        return Encoded(ids, mask, turns, images)

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.render(messages, add_generation_prompt)

    def _adapt(self, message: dict[str, Any]) -> dict[str, Any]:
        """The message as this template wants it: its name of the role, contents as parts."""
        message = {**message, "role": self._roles.get(message["role"], message["role"])}
        if message.get("metadata") and "metadata" not in str(self.tokenizer.get_chat_template()):
            raise ValueError("it writes no 'metadata' (the tool that a ChatGLM calls)")
        if self.vision is not None and visuals_in([message]):
            return template_message(message)
        if self._parts and isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        elif not self._parts and isinstance(message.get("content"), list):
            message["content"] = _joined(message["content"])
        return message

    def _probe(self) -> None:
        """Try contents as strings, then as parts (templates of vision models)."""
        failures = []
        for self._parts in (False, True):
            try:
                self._learn()
                return
            except (DataError, ModelError) as error:
                failures.append(str(error))
        raise ModelError(
            f"The chat template of {self.tokenizer.name_or_path!r} cannot be used for training: "
            f"{failures[0]}"
        )

    def _learn(self) -> None:
        encoder, eos = self.plain.encoder, self.tokenizer.eos_token
        self.layout = probe(self._render, encoder.added, encoder.special, eos)
        self._roles = self.layout.roles
        self._control = re.compile(f"{encoder.special.pattern}|{self.layout.ends.pattern}")
        spans = self.encode(probe_dialogue()).turns
        if len(spans) != 2 or any(begin == end for begin, end in spans):
            raise ModelError("no token of an assistant turn would be trained.")


def get_template(
    tokenizer: "PreTrainedTokenizerBase",
    loader_name: str,
    vision: VisionProcessor | None = None,
    **template_kwargs: Any,
) -> ChatTemplate | PlainText:
    """What turns rows of this loader into ids.

    Raises:
        ModelError: as `ChatTemplate`; LLM_Pure (ChatGLM_LoRA) needs no chat template.
        ConfigError: template variables for rows that use none.
    """
    textual = loader_name in ("LLM_Pure", "ChatGLM_LoRA")
    if textual or (loader_name == "LLM_GRPO" and not tokenizer.chat_template):
        if template_kwargs:
            raise ConfigError(
                f"loader_name='{loader_name}' uses no chat template, so it cannot take "
                f"{sorted(template_kwargs)}; leave them out."
            )
        return PlainText(tokenizer)
    return ChatTemplate(tokenizer, vision, **template_kwargs)


def _joined(parts: list[dict[str, Any]]) -> str:
    other = [part["type"] for part in parts if part["type"] != "text"]
    if other:
        raise ValueError(f"it takes text only, not a part of type '{other[0]}'")
    return "".join(part["text"] for part in parts)


def _refuse_unread(template: str, template_kwargs: dict[str, Any]) -> None:
    """A variable that the template never reads would be accepted and ignored."""
    if not template_kwargs:
        return
    names = sorted(_variables(template) - _NOT_OPTIONS)
    for name in template_kwargs:
        if name not in names:
            raise ConfigError(
                f"The chat template reads no variable '{name}'.{nearest(name, names)} "
                f"It reads {names}."
            )


def _variables(template: str) -> set[str]:
    from jinja2 import Environment, meta

    template = _GENERATION_TAG.sub("", template)
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    return meta.find_undeclared_variables(environment.parse(template))
