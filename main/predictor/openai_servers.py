"""What kinds of servers take beyond OpenAI's own fields, and who answers behind an address.

The extras of vLLM are held against a running server in the tests; those of the others are as their
documentation has them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from main.errors import ConfigError, ModelError
from main.models import has_tokenizer, load_tokenizer
from main.models.training_record import read_record
from main.options import nearest
from main.predictor.answerer import Answerer, answerer
from main.predictor.as_trained import AsTrained
from main.predictor.openai_link import is_local


class Kind(NamedTuple):
    """A kind of server.

    name: for messages.
    extras: what it reads of a request beyond OpenAI's fields.
    limit: its name for the most tokens of an answer.
    lists_all: every model that it answers for stands in its list.
    raw_calls: it can leave tool calls in the text as the model writes them.
    """

    name: str
    extras: frozenset[str] = frozenset()
    limit: str = "max_tokens"
    lists_all: bool = False
    raw_calls: bool = False


_SAMPLING = {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "skip_special_tokens"}
_TEMPLATE = {"chat_template_kwargs", "continue_final_message"}
_VLLM = _SAMPLING | _TEMPLATE | {"structured_outputs", "return_token_ids", "reasoning", "tokenize"}
KINDS = {
    "vllm": Kind("vLLM", frozenset(_VLLM), lists_all=True, raw_calls=True),
    "sglang": Kind("SGLang", frozenset(_SAMPLING | _TEMPLATE | {"regex"}), lists_all=True),
    "ollama": Kind("Ollama", lists_all=True),
    "openai": Kind("OpenAI", limit="max_completion_tokens"),
    "other": Kind("a server of a kind that is not known here"),
}
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "library": "ollama"}


class Served(NamedTuple):
    """Who answers.

    folder: on this machine, with the tokenizer and template that are served; None = not known.
    context: tokens of prompt and answer together, if the server tells.
    """

    model: str
    kind: Kind
    answerer: Answerer
    trained: AsTrained = AsTrained()
    folder: Path | None = None
    context: int | None = None

    def tokenizer(self) -> Any:
        """The model's tokenizer, if its files are here.

        Raises:
            ModelError: they are not.
        """
        if self.folder is None:
            raise ModelError(
                f"the tokenizer of '{self.model}' is with its server; load it by "
                "main.models.load_tokenizer."
            )
        return load_tokenizer(self.folder)


def served(model: str, base_url: str, kind: str, cards: Sequence[Mapping[str, Any]]) -> Served:
    """Who answers for `model` there.

    Of a server on this machine that tells the folder of its model (vLLM), the files count, as with
    the other predictors; of any other the address and the name are all that is known.

    Args:
        kind: 'auto' or a name of `KINDS`.
        cards: the server's list of models, as its /models has it; empty where it has none.

    Raises:
        ModelError: no such model there.
    """
    by_name = {str(card.get("id")): card for card in cards}
    found = KINDS[_kind(base_url, cards) if kind == "auto" else kind]
    card = by_name.get(model) or by_name.get(f"{model}:latest")
    if card is None and found.lists_all and by_name:
        raise ModelError(
            f"the server at {base_url} has no model '{model}'; it has "
            f"{', '.join(map(repr, by_name))}.{nearest(model, by_name)}"
        )
    folder = _folder(card, base_url)
    if folder is None:
        return Served(model, found, _by_name(model, base_url), context=_context(cards))
    base = _folder(by_name.get(str((card or {}).get("parent"))), base_url)
    who = answerer(folder) if base is None else answerer(base, folder)
    template = folder if base is None or has_tokenizer(folder) else base
    trained = AsTrained(read_record(folder))
    return Served(model, found, who, trained, template, _context(cards))


def address(base_url: str) -> str:
    """The address as requests need it; one without a path gets /v1.

    Raises:
        ConfigError: no http(s) address, or one with a key in it.
    """
    try:
        parts = urlsplit(base_url)
    except ValueError as error:
        raise ConfigError(f"base_url is no address: {error}.") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            "base_url is an address alone, without name, password, query or fragment (not shown "
            "here): give the key as api_key."
        )
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"base_url={base_url!r} must be an address such as 'http://127.0.0.1:8000/v1'."
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/v1'}"


def _kind(base_url: str, cards: Sequence[Mapping[str, Any]]) -> str:
    host = urlsplit(base_url).hostname or ""
    if host == "openai.com" or host.endswith(".openai.com"):
        return "openai"
    owners = {str(card.get("owned_by")) for card in cards}
    return next((_OWNERS[owner] for owner in sorted(owners & _OWNERS.keys())), "other")


def _folder(card: Mapping[str, Any] | None, base_url: str) -> Path | None:
    root = (card or {}).get("root")
    if not isinstance(root, str) or not is_local(base_url):
        return None
    folder = Path(root).expanduser()
    is_model = (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()
    return folder if folder.is_absolute() and is_model else None


def _context(cards: Sequence[Mapping[str, Any]]) -> int | None:
    """vLLM tells it of its base model, for all adapters."""
    told = [card["max_model_len"] for card in cards if isinstance(card.get("max_model_len"), int)]
    return told[0] if len(set(told)) == 1 else None


def _by_name(model: str, base_url: str) -> Answerer:
    digest = hashlib.sha256(f"{base_url} {model}".encode()).hexdigest()
    return Answerer(digest, f"{model} at {base_url}")
