"""One call of a predictor, checked: who answers, what ends an answer, what each request begins."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from main.dialogue.prompts import Prompts, encode, encoder_of, template_variables
from main.dialogue.tools import tool_schemas
from main.errors import ConfigError, DataError
from main.models.training_record import template_digest
from main.options import nearest, parse, raise_all
from main.predictor.answerer import Answerer, note
from main.predictor.as_trained import AsTrained
from main.predictor.request import build_prompts
from main.predictor.sampling import GenerationOptions


class Voice(NamedTuple):
    """Who answers a call.

    tokenizer: renders prompts and decodes answers; an adapter may bring its own.
    stop_ids: tokens that end an answer.
    lead: see `main.dialogue.prompts.answer_lead`.
    adapter: what the engine needs to know of an adapter; None = none, or part of the model.
    trained: how it was trained.
    answerer: what tells it from others; None = nobody asks.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    lead: str
    adapter: Any = None
    trained: AsTrained = AsTrained()
    answerer: Answerer | None = None


class Call(NamedTuple):
    """What holds for all requests of a call.

    settings: the caller's options.
    stop_ids: tokens that end an answer. stop_texts: texts that do.
    lead: blanks before an answer that are not part of it.
    begun_ids: ids of the answers' beginning, which end every prompt.
    """

    settings: Any
    voice: Voice
    stop_ids: frozenset[int]
    stop_texts: list[str]
    lead: str
    begun_ids: list[int]


def make_call(voice: Voice, settings: GenerationOptions) -> Call:
    """The call with these options, whose `build_message` is decided.

    Raises:
        ConfigError: a stop text that is more than a control token, or an answer begun without a
            chat template.
    """
    lead = voice.lead if settings.build_message else ""
    tokens, texts = _stops(voice.tokenizer, settings)
    begun: list[int] = []
    check_prefix(settings)
    if settings.assistant_prefix:
        begun = encoder_of(voice.tokenizer).ids([lead + settings.assistant_prefix])[0]
    stop_ids = voice.stop_ids | frozenset(settings.stop_token_ids or ()) | tokens
    return Call(settings, voice, stop_ids, texts, lead, begun)


def check_prefix(settings: GenerationOptions) -> None:
    """Raises:
    ConfigError: an answer begun without a chat template.
    """
    if settings.assistant_prefix and not settings.build_message:
        raise ConfigError(
            "assistant_prefix begins the answer to a dialogue; with build_message=False write it "
            "at the end of the prompt."
        )


def parse_options(
    options: type[GenerationOptions], given: Mapping[str, Any], where: str
) -> tuple[Any, dict[str, Any]]:
    """(the options of a call, what is left for the chat template)."""
    known = {field.name for field in fields(options)}
    own = {name: value for name, value in given.items() if name in known}
    others = {name: value for name, value in given.items() if name not in known}
    return parse(options, own, where), others


def prompts_of(
    call: Call,
    query: Any,
    history: Any,
    variables: dict[str, Any],
    system_prompt: str | None,
    vision: Any,
) -> tuple[Prompts, list[list[int]]]:
    """The call's prompts, and the ids of each with the beginning of its answer.

    Args:
        variables: of the chat template; one that it does not read is refused.
    """
    settings, tokenizer = call.settings, call.voice.tokenizer
    if variables:
        known = {field.name for field in fields(settings)}
        _check_variables(variables, template_variables(tokenizer), known)
    if settings.build_message:
        variables = call.voice.trained.variables(variables, template_variables(tokenizer))
    noted = variables | {"system_prompt": system_prompt}
    note(call.voice.answerer, settings, template_digest(tokenizer), noted)
    prompts = build_prompts(
        tokenizer,
        query,
        history,
        build_message=settings.build_message,
        system_prompt=system_prompt,
        tools=tools_of(settings),
        template_kwargs=variables,
        vision=vision,
        special=settings.allow_special_tokens,
    )
    return prompts, [[*ids, *call.begun_ids] for ids in encode(tokenizer, prompts, vision)]


def _stops(tokenizer: Any, settings: GenerationOptions) -> tuple[frozenset[int], list[str]]:
    """(stop texts that are one token of the vocabulary's own, the others)."""
    added = {str(token): (i, token.special) for i, token in tokenizer.added_tokens_decoder.items()}
    tokens, texts = set(), []
    for text in settings.stop_texts:
        control = [word for word, (_, special) in added.items() if special and word in text]
        if text in added:
            tokens.add(added[text][0])
        elif control and not settings.keeps_special:
            raise ConfigError(
                f"stop={text!r} has the control token {control[0]!r} in it, and answers are "
                "shown without these. Stop at the token alone, or give skip_special_tokens=False."
            )
        else:
            texts.append(text)
    return frozenset(tokens), texts


def tools_of(settings: GenerationOptions) -> list[dict[str, Any]]:
    """The schemas of the call's tools.

    Raises:
        ConfigError: something that is no schema and makes none.
    """
    try:
        return tool_schemas(settings.tools)
    except DataError as error:
        raise ConfigError(str(error)) from error


def _check_variables(given: dict[str, Any], variables: set[str], known: set[str]) -> None:
    """What is no argument of a call has to be a variable of the chat template."""
    raise_all(
        [
            f"'{name}' is neither an argument of a call nor a variable of this model's chat "
            f"template (its own: {', '.join(sorted(variables)) or 'none'})."
            f"{nearest(name, known | variables)}"
            for name in given
            if name not in variables
        ]
    )
