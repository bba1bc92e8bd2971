"""Query and history of a call -> dialogues. Shared by both predictors."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from main.dialogue.accounts import Dialogue
from main.dialogue.links import call_problems, kind_of, link_problems
from main.dialogue.messages import key_problems
from main.dialogue.prompts import Prompts, render
from main.errors import ConfigError
from main.loaders.strict_json import NotJson, check_shape, half_character
from main.options import shown
from main.types import Message
from main.vision import part_problem, template_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from main.vision import VisionProcessor

Query = str | Mapping[str, Any]
ANSWERABLE = ("user", "tool", "observation", "function")


def build_prompts(
    tokenizer: "PreTrainedTokenizerBase",
    query: Any,
    history: Any = None,
    *,
    build_message: bool = True,
    system_prompt: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    template_kwargs: Mapping[str, Any] | None = None,
    vision: "VisionProcessor | None" = None,
    special: bool = False,
) -> Prompts:
    """The prompts for `query` after `history`; neither is changed.

    Args:
        query: `str` = one user turn, mapping = one message, list = a batch of these and of whole
            dialogues (lists of messages).
        history: earlier messages of the one query, or a list with such a list for each of a batch.
        build_message: False = `query` is raw text (or a list of it), and no template is used.
        system_prompt: opens every dialogue that does not open with a system message itself.
        tools: JSON schemas of what the model may call.
        template_kwargs: variables for the chat template, e.g. `enable_thinking=False`.
        vision: of a model that takes images; without it they are refused.
        special: read control tokens in what users, systems and tools say as such.

    Raises:
        ConfigError: a query or history of the wrong shape.
        MissingFileError, DataError: an image that cannot be read.
        GenerationError: the model has no chat template, or its template refuses a dialogue.
    """
    if not build_message:
        variables = {**(template_kwargs or {}), **({"tools": tools} if tools else {})}
        return Prompts(raw_prompts(query, history, variables), templated=False)
    dialogues = [
        Dialogue(messages, tools, template_kwargs)
        for messages in build_dialogues(query, history, system_prompt)
    ]
    return render(tokenizer, dialogues, vision, special)


def build_dialogues(
    query: Any, history: Any = None, system_prompt: str | None = None
) -> list[list[Message]]:
    """One list of messages for every request; see `build_prompts`."""
    queries = query if isinstance(query, list) else [query]
    histories = _histories(query, history)
    dialogues = []
    for i, (one, past) in enumerate(zip(queries, histories, strict=True)):
        where = f"query[{i}]" if isinstance(query, list) else "query"
        dialogue = [*past, *_turns(one, where)]
        for number, problem in link_problems(dialogue):
            raise ConfigError(f"{where}: message {number} of the dialogue: {problem}")
        if system_prompt is not None and dialogue[0]["role"] != "system":
            dialogue.insert(0, {"role": "system", "content": system_prompt})
        dialogues.append(dialogue)
    return dialogues


def raw_prompts(query: Any, history: Any, template_kwargs: Any) -> list[str]:
    prompts = query if isinstance(query, list) else [query]
    if not all(isinstance(prompt, str) for prompt in prompts):
        raise ConfigError(
            "build_message=False takes a finished prompt (str) or a list of them; got "
            f"{_shape(query)}. Leave build_message=True for messages."
        )
    for i, prompt in enumerate(prompts):
        _refuse_what_no_text_has({"content": prompt}, f"query[{i}]")
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
        return [_message({"role": "user", "content": query}, where)]
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
    calls_alone = content is None and given.get("tool_calls")
    if not isinstance(content, str | list) and not calls_alone:
        raise ConfigError(
            f"{where}: 'content' must be text or a list of parts, not {type(content).__name__}."
        )
    for i, part in enumerate(content if isinstance(content, list) else []):
        problem = _part_problem(part)
        if problem:
            raise ConfigError(f"{where} content[{i}] {problem}")
    _refuse_what_no_text_has(given, where)
    for problem in [*key_problems(given), *call_problems(given)]:
        raise ConfigError(f"{where} {problem}")
    return dict(given)  # type: ignore[return-value]


def _refuse_what_no_text_has(message: Mapping[str, Any], where: str) -> None:
    """Half of a surrogate pair, which no tokenizer takes; what could not be written as JSON."""
    bare = template_message(message)  # without the sources of images
    try:
        check_shape(bare)
    except NotJson as error:
        raise ConfigError(f"{where}: {error}") from error
    half = half_character(bare)
    if half:
        raise ConfigError(
            f"{where} has {half} in it: half a surrogate pair, which is no "
            "character. Remove or complete it."
        )


def _part_problem(part: Any) -> str:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        return f"must be a part such as {{'type': 'text', 'text': '...'}}; got {_shape(part)}."
    return part_problem(part)


def _shape(value: Any) -> str:
    """A short description of a wrong value for an error text."""
    if isinstance(value, list) and value:
        return f"a list of {type(value[0]).__name__}"
    if isinstance(value, Mapping):
        return f"a mapping with {shown(sorted(map(str, value)))}"
    return kind_of(value)
