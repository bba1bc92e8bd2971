"""Dialogues -> prompts that a model continues -> token ids. Shared by both predictors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from main.dialogue.accounts import Account, Accountant, Dialogue
from main.dialogue.control import forged
from main.dialogue.frame import probe_dialogue
from main.dialogue.renderer import Renderer, renderer_of
from main.dialogue.tokens import TextEncoder
from main.errors import DataError, GenerationError, ModelError
from main.vision import SUPPORTED, Visual, visuals_in
from main.vision.media import is_visual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from main.vision import VisionProcessor


class Prompts(NamedTuple):
    """What the model is asked, one entry a request.

    texts: rendered prompts, special tokens spelt out where a template wrote them.
    templated: True when a chat template made them, so that the tokenizer must add nothing.
    visuals: the images and videos of each, in the order of their placeholders.
    borders: of each, where its earlier answers begin.
    plain: of each, places within texts that look like control tokens and are plain characters.
    dialogues: what they were made of.
    """

    texts: list[str]
    templated: bool
    visuals: Sequence[Sequence[Visual]] = ()
    borders: Sequence[Sequence[int]] = ()
    plain: Sequence[Sequence[int]] = ()
    dialogues: Sequence[Dialogue] = ()

    def images(self, request: int) -> Sequence[Visual]:
        """Those of one request."""
        return self.visuals[request] if self.visuals else ()


def render(
    tokenizer: "PreTrainedTokenizerBase",
    dialogues: Sequence[Dialogue],
    vision: "VisionProcessor | None" = None,
    special: bool = False,
) -> Prompts:
    """Each dialogue as the text that the model continues with its answer.

    Args:
        special: read control tokens in what others than the assistant say as such.

    Raises:
        GenerationError: no chat template, or one that refuses a dialogue or leaves some of it out.
    """
    if not tokenizer.chat_template:
        raise GenerationError(
            f"tokenizer '{tokenizer.name_or_path}' has no chat template, so a dialogue cannot be "
            "written as a prompt. Set `tokenizer.chat_template`, or pass finished prompts with "
            "build_message=False."
        )
    renderer = renderer_of(tokenizer, vision)
    accountant = Accountant(renderer)
    accounts = [_account(renderer, accountant, i, d) for i, d in enumerate(dialogues)]
    plain = [
        () if special else forged(account, dialogue.tools, renderer.control)
        for account, dialogue in zip(accounts, dialogues, strict=True)
    ]
    return Prompts(
        [account.text for account in accounts],
        templated=True,
        visuals=[visuals_in(dialogue.messages) for dialogue in dialogues],
        borders=[account.borders for account in accounts],
        plain=plain,
        dialogues=dialogues,
    )


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompts,
    vision: "VisionProcessor | None" = None,
) -> list[list[int]]:
    """Token ids of each prompt; a BOS that the text already spells out is not added again.

    With `vision` the placeholder of an image is repeated for each of its features.
    """
    if prompts.templated:
        encoder, count = renderer_of(tokenizer, vision).encoder, len(prompts.texts)
        borders, plain = prompts.borders or [()] * count, prompts.plain or [()] * count
        found = encoder.encode(prompts.texts, [[] for _ in range(count)], borders, plain)
        ids = [encoded.input_ids for encoded in found]
    else:
        ids = [_raw_ids(tokenizer, text) for text in prompts.texts]
    if vision is None:
        return ids
    return [vision.expand(row, prompts.images(i)).ids for i, row in enumerate(ids)]


def encoder_of(tokenizer: "PreTrainedTokenizerBase") -> TextEncoder:
    """Text -> ids of this tokenizer, made once."""
    return renderer_of(tokenizer).encoder


def answer_lead(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The blanks that a model writes first because its chat template has them before an answer.

    GLM's prompt ends with "<|assistant|>" and its answers begin on a new line; '' for templates
    whose generation prompt includes what stands there.
    """
    if not tokenizer.chat_template:
        return ""
    renderer = renderer_of(tokenizer)
    turns = probe_dialogue()[:2]
    try:
        prompt = renderer.render(turns[:1], add_generation_prompt=True)
        whole = renderer.render(turns)
    except DataError:
        return ""
    if not whole.startswith(prompt):
        return ""
    ids = encode(tokenizer, Prompts([prompt, whole], templated=True))
    lead = str(tokenizer.decode(ids[1][len(ids[0]) :])).partition(turns[1]["content"])[0]
    return lead if lead.isspace() else ""


def template_variables(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Names that a caller may hand to the chat template, e.g. {'enable_thinking', 'tools'}."""
    return renderer_of(tokenizer).variable_names() if tokenizer.chat_template else set()


def _account(renderer: Renderer, accountant: Accountant, index: int, dialogue: Dialogue) -> Account:
    if renderer.vision is None:
        _refuse_images(dialogue.messages)
    try:
        account = accountant.account(dialogue, asks=True)
    except ModelError:  # a template that cannot be trained with may still ask
        account = accountant.bare(dialogue)
    except DataError as error:
        reason = str(error.__cause__ or error)
        raise GenerationError(
            f"the chat template of '{renderer.tokenizer.name_or_path}' refuses request {index} "
            f"(roles {[message['role'] for message in dialogue.messages]}): {reason}"
        ) from error
    problem = account.problem([*account.lost, *_unanswered(account)])
    if problem:
        raise GenerationError(f"request {index}, {problem}")
    return account


def _unanswered(account: Account) -> list[int]:
    """What the template leaves out of earlier answers; their thoughts are no loss."""
    numbers = [number for turn in account.turns for number in turn.missing]
    return [number for number in numbers if account.texts[number].part != "thoughts"]


def _raw_ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Ids of a finished prompt; a BOS that it spells out already is not added again."""
    bos = tokenizer.bos_token
    spelt = bos is not None and text.startswith(str(bos))
    return tokenizer(text, add_special_tokens=not spelt)["input_ids"]  # type: ignore[return-value]


def _refuse_images(messages: Sequence[Mapping[str, Any]]) -> None:
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else []
        visual = [part["type"] for part in parts if is_visual(part)]
        if visual:
            raise GenerationError(
                f"the message has {len(visual)} parts of type '{visual[0]}', and this model takes "
                f"text alone. Models that take images: {', '.join(SUPPORTED)}."
            )
