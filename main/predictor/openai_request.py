"""The options of a call -> the fields of a request; what a server cannot do is refused by name."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from main.errors import ConfigError
from main.options import raise_all
from main.predictor.call import tools_of
from main.predictor.openai_messages import wire_messages
from main.predictor.openai_servers import Kind, Served
from main.predictor.structured import StructuredOptions

_CONTROL = re.compile(r"<[|｜].*[|｜]>|</?s>")  # what a control token looks like
# Variables that templates of many families have; of others only the tokenizer could tell.
USUAL_VARIABLES = ("enable_thinking", "thinking", "reasoning_effort")


@dataclass
class CallOptions(StructuredOptions):
    """What a caller may say about one call, beside `StructuredOptions`.

    Whatever the server has no field for is refused. A server reads control tokens in messages as
    such, so that allow_special_tokens=False is refused as well.

    chat_template_kwargs: variables of the chat template, beside those given by their names.
    extra_body: further fields of the request, which are sent as they are.
    """

    chat_template_kwargs: dict[str, Any] | None = None
    extra_body: dict[str, Any] | None = None


def check(settings: CallOptions, variables: Mapping[str, Any], served: Served) -> None:
    """Refuse what the server has no field for.

    Args:
        variables: of the chat template.

    Raises:
        ConfigError: every such option, by name.
    """
    kind = served.kind
    needs = {
        "top_k": settings.top_k is not None and settings.top_k > 0,
        "min_p": bool(settings.min_p),
        "repetition_penalty": settings.repetition_penalty != 1,
        "stop_token_ids": bool(settings.stop_token_ids),
        "skip_special_tokens": settings.keeps_special,
        "assistant_prefix": bool(settings.assistant_prefix),
        "regex": settings.regex is not None,
        "choice": settings.choice is not None,
        "no_repeat_ngram_size": bool(settings.no_repeat_ngram_size),
    }
    can = set(kind.extras)
    can |= {"assistant_prefix"} if "continue_final_message" in can else set()
    can |= {"regex", "choice"} if "structured_outputs" in can else set()
    names = [name for name, needed in needs.items() if needed and name not in can]
    if "chat_template_kwargs" not in can:
        names += list(variables)
    problems = [_cannot(name, kind) for name in names]
    stop = next((text for text in settings.stop_texts if _CONTROL.fullmatch(text)), None)
    if stop is not None and "tokenize" not in can and not settings.keeps_special:
        problems.append(
            f"stop={stop!r} looks like a control token, and {kind.name} leaves these out of the "
            "text before it looks for stops."
        )
    raise_all(problems + _taken(settings, kind))


def _cannot(name: str, kind: Kind) -> str:
    return (
        f"'{name}' is not among what {kind.name} is told in OpenAI's protocol: leave it out, or "
        "send what this server calls it in extra_body={...}. If it is another kind of server, give "
        "server= to openai.Predictor()."
    )


def _taken(settings: CallOptions, kind: Kind) -> list[str]:
    own = {"model", "messages", "prompt", "stream", "logprobs", "temperature", "top_p", "seed"}
    own |= {"stop", "n", "tools", "response_format", "structured_outputs", "max_tokens", kind.limit}
    own |= kind.extras - {"tokenize", "reasoning"}
    return [
        f"extra_body has '{name}', which the call's own arguments decide."
        for name in settings.extra_body or {}
        if name in own
    ]


def fields_of(
    settings: CallOptions, served: Served, stop_ids: Sequence[int], logprobs: bool, chat: bool
) -> dict[str, Any]:
    """Every field that does not depend on the request.

    Sampling is always written out, so that a server's own defaults for the model do not apply.

    Args:
        stop_ids: of the call's stop texts that are control tokens.
        logprobs: ask for those of every token.
        chat: of a dialogue, not of a finished prompt.
    """
    kind, limit = served.kind, settings.max_new_tokens
    body: dict[str, Any] = {"model": served.model, **_sampling(settings, kind)}
    if served.context is not None:
        limit = min(limit, served.context)
    body[kind.limit if chat else "max_tokens"] = limit
    if settings.stop_texts:
        body["stop"] = settings.stop_texts
    if stop_ids or settings.stop_token_ids:
        body["stop_token_ids"] = sorted({*stop_ids, *(settings.stop_token_ids or ())})
    if settings.keeps_special:
        body["skip_special_tokens"] = False
    if logprobs:
        body["logprobs"] = True if chat else 1
        if "return_token_ids" in kind.extras:
            body["return_token_ids"] = True
    return body | _structure(settings, kind) | (settings.extra_body or {})


def _sampling(settings: CallOptions, kind: Kind) -> dict[str, Any]:
    temperature = 1.0 if settings.temperature is None else settings.temperature
    sampling: dict[str, Any] = {
        "temperature": temperature if settings.samples else 0.0,
        "top_p": 1.0 if settings.top_p is None else max(settings.top_p, 1e-9),
    }
    if kind.limit == "max_completion_tokens":  # models that think take no others than 1
        sampling = {name: value for name, value in sampling.items() if value != 1}
    if "top_k" in kind.extras:
        sampling["top_k"] = settings.top_k if settings.top_k and settings.top_k > 0 else -1
        sampling["min_p"] = settings.min_p or 0.0
        sampling["repetition_penalty"] = settings.repetition_penalty
    return sampling


def _structure(settings: CallOptions, kind: Kind) -> dict[str, Any]:
    structure = settings.structure
    if not structure or "structured_outputs" in kind.extras:
        return {"structured_outputs": structure} if structure else {}
    if "regex" in structure:
        return {"regex": structure["regex"]}
    schema = structure["json"]
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise ConfigError(f"json_schema is a text that is not JSON: {error}.") from error
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def chat_bodies(
    dialogues: Iterable[Sequence[Mapping[str, Any]]],
    settings: CallOptions,
    variables: Mapping[str, Any],
    kind: Kind,
) -> list[dict[str, Any]]:
    """What each request asks: its messages, and what the template is to make of them."""
    shared: dict[str, Any] = {}
    tools = tools_of(settings)
    if tools:
        shared["tools"] = tools
        if kind.raw_calls:
            shared["tool_choice"] = "none"  # the tools are shown, and calls stay in the text
    if variables:
        shared["chat_template_kwargs"] = dict(variables)
    begun = []
    if settings.assistant_prefix:
        shared |= {"add_generation_prompt": False, "continue_final_message": True}
        begun = [{"role": "assistant", "content": settings.assistant_prefix}]
    thoughts = "reasoning" in kind.extras
    return [
        {**shared, "messages": [*wire_messages(dialogue, thoughts), *begun]}
        for dialogue in dialogues
    ]


def control_texts(settings: CallOptions) -> list[str]:
    """Stop texts that may be a token of the vocabulary's own."""
    return [text for text in settings.stop_texts if _CONTROL.fullmatch(text)]


def seed_of(settings: CallOptions, sequence: int) -> dict[str, int]:
    """The field of answer number `sequence` of a request; the seeds of the other predictors."""
    if settings.seed is None or not settings.samples:
        return {}
    return {"seed": (settings.seed * 1_000_003 + sequence) % 2**63}
