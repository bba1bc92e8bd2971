"""Query and history -> dialogues -> prompts -> token ids. Shared by both predictors."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, TemplateError, meta

from main.errors import ConfigError, GenerationError
from main.types import Message
from main.vision import SUPPORTED, Visual, part_problem, template_message, visuals_in
from main.vision.media import is_visual

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from main.vision import VisionProcessor

Query = str | Mapping[str, Any]
ANSWERABLE = ("user", "tool", "observation", "function")
TEMPLATE_OWN = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
GENERATION_TAG = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class Prompts(NamedTuple):
    """What the model is asked, one entry a request.

    texts: rendered prompts, special tokens spelt out where a template wrote them.
    templated: True when a chat template made them, so that the tokenizer must add nothing.
    visuals: the images and videos of each, in the order of their placeholders.
    """

    texts: list[str]
    templated: bool
    visuals: Sequence[Sequence[Visual]] = ()

    def images(self, request: int) -> Sequence[Visual]:
        """Those of one request."""
        return self.visuals[request] if self.visuals else ()


def build_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    query: Any,
    history: Any = None,
    *,
    build_message: bool = True,
    system_prompt: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    vision: "VisionProcessor | None" = None,
) -> Prompts:
    """The prompts for `query` after `history`; neither is changed.

    Args:
        query: `str` = one user turn, mapping = one message, list = a batch of these and of whole
            dialogues (lists of messages).
        history: earlier messages of the one query, or a list with such a list for each of a batch.
        build_message: False = `query` is raw text (or a list of it), and no template is used.
        system_prompt: opens every dialogue that does not open with a system message itself.
        template_kwargs: variables for the chat template, e.g. `enable_thinking=False`.
        vision: of a model that takes images; without it they are refused.

    Raises:
        ConfigError: a query or history of the wrong shape.
        MissingFileError, DataError: an image that cannot be read.
        GenerationError: the model has no chat template, or its template refuses a dialogue.
    """
    if not build_message:
        return Prompts(_raw_prompts(query, history, template_kwargs), templated=False)
    dialogues = build_dialogues(query, history, system_prompt)
    texts = render(tokenizer, dialogues, template_kwargs, vision)
    return Prompts(texts, templated=True, visuals=[visuals_in(d) for d in dialogues])


def build_dialogues(
    query: Any, history: Any = None, system_prompt: str | None = None
) -> list[list[Message]]:
    """One list of messages for every request; see `build_prompts`."""
    queries = query if isinstance(query, list) else [query]
    histories = _histories(query, history)
    dialogues = []
    for i, (one, past) in enumerate(zip(queries, histories, strict=True)):
        dialogue = [*past, *_turns(one, f"query[{i}]" if isinstance(query, list) else "query")]
        if system_prompt is not None and dialogue[0]["role"] != "system":
            dialogue.insert(0, {"role": "system", "content": system_prompt})
        dialogues.append(dialogue)
    return dialogues


def render(
    tokenizer: "PreTrainedTokenizerBase",
    dialogues: Sequence[list[Message]],
    template_kwargs: Mapping[str, Any] | None = None,
    vision: "VisionProcessor | None" = None,
) -> list[str]:
    """Each dialogue as the text that the model continues with its answer."""
    if not tokenizer.chat_template:
        raise GenerationError(
            f"tokenizer '{tokenizer.name_or_path}' has no chat template, so a dialogue cannot be "
            "written as a prompt. Set `tokenizer.chat_template`, or pass finished prompts with "
            "build_message=False."
        )
    return [
        _render(tokenizer, i, d, template_kwargs or {}, vision) for i, d in enumerate(dialogues)
    ]


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Prompts,
    vision: "VisionProcessor | None" = None,
) -> list[list[int]]:
    """Token ids of each prompt; a BOS that the text already spells out is not added again.

    With `vision` the placeholder of an image is repeated for each of its features.
    """
    bos = tokenizer.bos_token
    ids = [
        tokenizer(
            text,
            add_special_tokens=not (
                prompts.templated or (bos is not None and text.startswith(bos))
            ),
        )["input_ids"]
        for text in prompts.texts
    ]
    if vision is None:
        return ids
    return [vision.expand(row, prompts.images(i)).ids for i, row in enumerate(ids)]


def answer_lead(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The blanks that a model writes first because its chat template has them before an answer.

    GLM's prompt ends with "<|assistant|>" and its answers begin on a new line; '' for templates
    whose generation prompt includes what stands there.
    """
    if not tokenizer.chat_template:
        return ""
    answer = "the-answer-of-the-assistant"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        prompt = tokenizer.apply_chat_template(
            turns[:1], tokenize=False, add_generation_prompt=True
        )
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError):  # a vision model's, which takes contents as parts only
        return ""
    if not str(whole).startswith(str(prompt)):
        return ""
    ids = encode(tokenizer, Prompts([str(prompt), str(whole)], templated=True))
    lead = str(tokenizer.decode(ids[1][len(ids[0]) :])).partition(answer)[0]
    return lead if lead.isspace() else ""


def template_variables(tokenizer: "PreTrainedTokenizerBase") -> set[str]:
    """Names that a caller may hand to the chat template, e.g. {'enable_thinking', 'tools'}."""
    templates = tokenizer.chat_template or ""
    sources = templates.values() if isinstance(templates, Mapping) else [templates]
    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    names: set[str] = set()
    for source in sources:
        # the tag around trained turns is an extension of transformers that jinja2 cannot parse
        plain = GENERATION_TAG.sub("", source)
        names |= meta.find_undeclared_variables(environment.parse(plain))
    return {name for name in names - TEMPLATE_OWN if not name.endswith("_token")}


def _raw_prompts(query: Any, history: Any, template_kwargs: Any) -> list[str]:
    prompts = query if isinstance(query, list) else [query]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(
            "build_message=False takes a finished prompt (str) or a list of them; got "
            f"{_shape(query)}. Leave build_message=True for messages."
        )
    if _any_message(history):
        raise ConfigError(
            "history is written into the prompt by the chat template, which build_message=False "
            "leaves out. Write the earlier turns into the prompt, or use build_message=True."
        )
    if template_kwargs:
        raise ConfigError(
            f"{sorted(template_kwargs)} are for the chat template, which build_message=False "
            "leaves out."
        )
    return prompts


def _any_message(history: Any) -> bool:
    return any(not isinstance(item, list) or item for item in history or [])


def _histories(query: Any, history: Any) -> list[list[Message]]:
    """One list of earlier messages for every query."""
    count = len(query) if isinstance(query, list) else 1
    if history is None or history == []:
        return [[] for _ in range(count)]
    if not isinstance(history, list):
        raise ConfigError(f"history must be a list of messages, not {_shape(history)}.")
    nested = all(isinstance(past, list) or past is None for past in history)
    if not isinstance(query, list) and not nested:
        return [_messages(history, "history")]
    if not nested:
        raise ConfigError(
            "for a batch, history is a list with one list of messages for each query, such as "
            f"[[], [...]]; got {_shape(history)}."
        )
    if len(history) != count:
        raise ConfigError(
            f"history has {len(history)} entries for {count} quer{'y' if count == 1 else 'ies'}; "
            "it needs one list of messages for each, [] where there is none."
        )
    return [_messages(past or [], f"history[{i}]") for i, past in enumerate(history)]


def _turns(query: Any, where: str) -> list[Message]:
    """The messages of one request; the last one is what the model answers."""
    if isinstance(query, str):
        return [{"role": "user", "content": query}]
    if isinstance(query, Mapping):
        message = _message(query, where)
        _refuse_unanswerable(message, where, alone=True)
        return [message]
    if isinstance(query, list) and query:
        messages = _messages(query, where)
        _refuse_unanswerable(messages[-1], where, alone=False)
        return messages
    raise ConfigError(
        f"{where} must be text, a message {{'role', 'content'}} or a list of messages; got "
        f"{_shape(query)}."
    )


def _refuse_unanswerable(message: Message, where: str, alone: bool) -> None:
    if message["role"] in ANSWERABLE:
        return
    hint = (
        " A list of messages is a batch of separate requests; write one dialogue as [[...]]."
        if alone
        else ""
    )
    raise ConfigError(
        f"{where} ends with a message of role '{message['role']}', which calls for no answer; the "
        f"last message has to be of role {', '.join(repr(r) for r in ANSWERABLE)}.{hint}"
    )


def _messages(given: list[Any], where: str) -> list[Message]:
    return [_message(item, f"{where}[{i}]") for i, item in enumerate(given)]


def _message(given: Any, where: str) -> Message:
    """A shallow copy, so that what comes later cannot change the caller's."""
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise ConfigError(
            f"{where} must be a message such as {{'role': 'user', 'content': '...'}}; got "
            f"{_shape(given)}."
        )
    content = given.get("content")
    if not isinstance(content, str | list) and not given.get("tool_calls"):
        raise ConfigError(
            f"{where}: 'content' must be text or a list of parts, not {type(content).__name__}."
        )
    for i, part in enumerate(content if isinstance(content, list) else []):
        problem = _part_problem(part)
        if problem:
            raise ConfigError(f"{where} content[{i}] {problem}")
    return dict(given)  # type: ignore[return-value]


def _part_problem(part: Any) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        return f"must be a part such as {{'type': 'text', 'text': '...'}}; got {_shape(part)}."
    return part_problem(part)


def _render(
    tokenizer: Any,
    index: int,
    dialogue: list[Message],
    template_kwargs: Mapping[str, Any],
    vision: "VisionProcessor | None",
) -> str:
    adapt = _as_text if vision is None else template_message
    try:
        text = tokenizer.apply_chat_template(
            [adapt(message) for message in dialogue],
            tokenize=False,
            add_generation_prompt=True,
            **template_kwargs,
        )
    except TemplateError as error:
        raise GenerationError(
            f"the chat template of '{tokenizer.name_or_path}' refuses request {index} (roles "
            f"{[message['role'] for message in dialogue]}): {error}"
        ) from error
    return text if vision is None else vision.write(text, visuals_in(dialogue))


def _as_text(message: Message) -> Message:
    """Join the text parts of a content list, which templates of text models print as Python."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    visual = [part["type"] for part in content if is_visual(part)]
    if visual:
        raise GenerationError(
            f"the message has {len(visual)} parts of type '{visual[0]}', and this model takes "
            f"text alone. Models that take images: {', '.join(SUPPORTED)}."
        )
    return {**message, "content": "".join(part.get("text", "") for part in content)}


def _shape(value: Any) -> str:
    """A short description of a wrong value for an error text."""
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    if isinstance(value, Mapping):
        return f"a mapping with {sorted(value)}"
    return f"{type(value).__name__} {value!r:.60}"
