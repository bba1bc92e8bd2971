"""Inference by any server that speaks OpenAI's protocol: the calls of `main.predictor.hf`.

predictor = Predictor("tickets", base_url="http://127.0.0.1:8000/v1")   # vLLM, SGLang
predictor = Predictor("llama3.2", base_url="http://127.0.0.1:11434/v1") # Ollama
predictor = Predictor("gpt-4.1", base_url="https://api.openai.com/v1")  # key: OPENAI_API_KEY
predictor("What is the capital of France?")                             # -> ["..."]

`python -m main.utils.serve MODEL --peft_path ADAPTER` starts a vLLM server that gives the answers
of the other predictors.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from main.dialogue.calls import FORMATS, format_of, read_answer
from main.dialogue.prompts import template_variables
from main.dialogue.renderer import renderer_of
from main.dialogue.tools import tool_schemas
from main.errors import ConfigError, EngineDiedError, GenerationError, ModelError
from main.options import KeyOf, nearest, parse, raise_all
from main.predictor.answerer import note
from main.predictor.call import check_prefix, parse_options, tools_of
from main.predictor.openai_errors import Limits
from main.predictor.openai_link import Link, Request
from main.predictor.openai_reply import Reply
from main.predictor.openai_request import (
    USUAL_VARIABLES,
    CallOptions,
    chat_bodies,
    check,
    control_texts,
    fields_of,
    seed_of,
)
from main.predictor.openai_servers import KINDS, address, served
from main.predictor.request import build_dialogues, raw_prompts
from main.predictor.secret import key_of
from main.types import ScoredAnswer

KEY = "OPENAI_API_KEY"
HERMES = FORMATS[0]  # the form in which openai_reply writes calls that a server took out
TOKENIZED = {"model", "messages", "prompt", "tools", "chat_template_kwargs"}
TOKENIZED |= {"add_generation_prompt", "continue_final_message"}
StreamItem = tuple[list[str], list[str]]


@dataclass
class PredictorOptions:
    """Keyword arguments of `Predictor`, beside `api_key`.

    model (also model_from_pretrained): the name under which the server knows it; of vLLM also an
        adapter's name.
    base_url: where the server listens; an address without a path gets /v1.
    server: 'vllm', 'sglang', 'ollama' or 'openai' = what its requests may have beyond the common
        fields; 'other' = nothing; 'auto' = as its list of models says.
    system_prompt: opens every dialogue that has no system message.
    max_concurrency: most requests that are on their way at once.
    timeout: seconds for an answer; of a stream for the next piece of it.
    max_retries: how often a request is sent again after 408, 409, 429, 5xx, a connection that
        fails or a time limit; not after other refusals.
    backoff: seconds before the first of these, doubled with each; a server's Retry-After comes
        first, unless it is longer than `timeout`.
    """

    model: str
    base_url: str = "http://127.0.0.1:8000/v1"
    server: Annotated[str, KeyOf(KINDS, "auto")] = "auto"
    system_prompt: str | None = None
    max_concurrency: int = 32
    timeout: float = 600.0
    max_retries: int = 4
    backoff: float = 1.0

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        bounds = {"max_concurrency": 1, "max_retries": 0, "backoff": 0}
        found = [
            f"{name}={getattr(self, name)} must be >= {bound}."
            for name, bound in bounds.items()
            if getattr(self, name) < bound
        ]
        if self.timeout <= 0:
            found.append(f"timeout={self.timeout} must be above 0 (seconds).")
        return found


class _Asked(NamedTuple):
    """request: what is sent. reply: empty, with what the answer begins with."""

    request: Request
    reply: Reply


class Predictor:
    """Answers of a server; greedy unless a call asks for sampling.

    May be called from several threads at once.
    """

    where = "openai.Predictor call"

    def __init__(
        self,
        model: str | None = None,
        base_url: str = "http://127.0.0.1:8000/v1",
        api_key: str | None = None,
        **options: Any,
    ):
        """Ask the server what it has; the arguments are those of `PredictorOptions`.

        Args:
            api_key: None = of OPENAI_API_KEY in the environment, if it is set; '' = none. It is
                sent to the server and shown nowhere.

        Raises:
            ConfigError: unknown arguments, values that cannot work, or a key that is refused.
            ModelError: the server has no such model.
            EngineDiedError: nothing answers there.
            MissingExtraError: the package openai is not installed.
        """
        given = {"base_url": base_url, **options} | ({} if model is None else {"model": model})
        aliases = {"model_from_pretrained": "model"}
        self.options = parse(PredictorOptions, given, "openai.Predictor()", aliases)
        own = self.options
        own.base_url = address(own.base_url)
        limits = Limits(own.timeout, own.max_retries, own.backoff, own.max_concurrency)
        self.model, self.system_prompt = own.model, own.system_prompt
        self._link = Link(own.base_url, key_of(api_key, KEY), limits)
        try:
            self.served = served(own.model, own.base_url, own.server, self._cards())
        except BaseException:
            self.close()
            raise
        self._tokenizer: Any = None
        self._stop_ids: dict[str, list[int]] = {}

    def __repr__(self) -> str:
        return f"openai.Predictor({self.model!r}, base_url={self.options.base_url!r})"

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, of a server here that tells the model's folder (vLLM).

        Raises:
            ModelError: it is not known.
        """
        if self._tokenizer is None:
            self._tokenizer = self.served.tokenizer()
        return self._tokenizer

    def close(self) -> None:
        """End what is on its way, and the connections."""
        self._link.close()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __call__(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> list[str]:
        """The answers, always a list, in the order of the requests.

        Thoughts and tool calls are part of the texts, whether the server takes them out or not:
        `<think>...</think>` before the answer, calls as the model writes them or in Hermes' form.

        Args:
            query, history: as of `main.predictor.hf.Predictor`.
            options: see `CallOptions`; other names are variables of the chat template
                (`enable_thinking=False`), of servers that take these.

        Raises:
            ConfigError: arguments that are unknown or that this server has no field for.
            GenerationError: a request that the server refuses, or one without an answer after all
                attempts; it ends the others.
        """
        asked = self._prepare(query, history, max_new_tokens, options)
        return [reply.text for reply in self._complete(asked)]

    def predict_with_logprobs(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> list[ScoredAnswer]:
        """The answers with the log-probability of each token; arguments as `__call__`.

        vLLM tells ids of tokens; other servers their texts, `tokens`, and then `token_ids` is
        empty. Log-probabilities are as the server counts them (vLLM: --logprobs-mode).
        """
        asked = self._prepare(query, history, max_new_tokens, options, logprobs=True)
        return [reply.scored() for reply in self._complete(asked)]

    def predict_stream(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> Generator[StreamItem, None, None]:
        """Yield `(new_chunks, texts_so_far)`, one entry a request, as tokens arrive.

        The arguments are those of `__call__`, checked at once; the texts end as its result. Even
        an empty answer is one item. Closing the generator closes the connections.
        """
        return self._stream(self._prepare(query, history, max_new_tokens, options))

    def prompt_ids(self, query: Any, history: Any = None, **options: Any) -> list[list[int]]:
        """Token ids of what the model is asked, as the server makes them (vLLM alone tells)."""
        if "tokenize" not in self.served.kind.extras:
            raise ConfigError(
                f"{self.served.kind.name} does not tell the ids of a prompt; main.predictor.hf "
                "makes them here."
            )
        asked = self._prepare(query, history, 1, options)
        bodies = [
            {name: value for name, value in one.request.body.items() if name in TOKENIZED}
            for one in asked
        ]
        return [found["tokens"] for found in self._tokenized(bodies)]

    def message(self, answer: str | ScoredAnswer, tools: Any = None) -> dict[str, Any]:
        """An answer as a message, to go on from: its content, thoughts and tool calls.

        Args:
            tools: as given to the call. Where the model's template is not here, what names one of
                them in any known way of calling is a call.
        """
        text = answer.text if isinstance(answer, ScoredAnswer) else answer
        schemas = tool_schemas(tools)
        if HERMES.find(text):
            return read_answer(text, HERMES, schemas)
        if self.served.folder is not None:
            return read_answer(text, format_of(renderer_of(self.tokenizer)), schemas)
        names = {schema["function"]["name"] for schema in schemas}
        known = (f for f in FORMATS if {call.name for call in f.find(text)} & names)
        return read_answer(text, next(known, HERMES), schemas)

    def _complete(self, asked: Sequence[_Asked]) -> list[Reply]:
        found = self._link.run([one.request for one in asked])
        for one, response in zip(asked, found, strict=True):
            one.reply.take(response)
            one.reply.check_ended()
        return [one.reply for one in asked]

    def _stream(self, asked: Sequence[_Asked]) -> Generator[StreamItem, None, None]:
        shown = False
        with closing(self._link.stream([one.request for one in asked])) as items:
            for pieces in items:
                chunks = [""] * len(asked)
                for index, response in pieces:
                    chunks[index] += asked[index].reply.take(response)
                if any(chunks):
                    yield chunks, [one.reply.text for one in asked]
                    shown = True
        for one in asked:
            one.reply.check_ended()
        if asked and not shown:
            yield [""] * len(asked), [""] * len(asked)

    def _prepare(
        self,
        query: Any,
        history: Any,
        max_new_tokens: int,
        options: Mapping[str, Any],
        logprobs: bool = False,
    ) -> list[_Asked]:
        """Check and write the requests; nothing has been sent yet."""
        if options.get("allow_special_tokens") is False:
            raise ConfigError(
                "allow_special_tokens=False cannot be held here: a server reads control tokens in "
                "messages as such. Leave it out, or use main.predictor.hf or main.predictor.vllm."
            )
        given = {"max_new_tokens": max_new_tokens, **options}
        settings, others = parse_options(CallOptions, given, self.where)
        trained = self.served.trained
        chat = trained.builds_message(settings.build_message, query, history)
        settings.build_message = chat
        variables = self._variables(settings, others)
        check(settings, variables, self.served)
        check_prefix(settings)
        self._check_tools(settings)
        if chat:
            dialogues = build_dialogues(query, history, self.system_prompt)
            bodies = chat_bodies(dialogues, settings, variables, self.served.kind)
        else:
            tools = tools_of(settings)
            told = {**variables, **({"tools": tools} if tools else {})}
            bodies = [{"prompt": prompt} for prompt in raw_prompts(query, history, told)]
        note(self.served.answerer, settings, "", variables | {"system_prompt": self.system_prompt})
        fields = fields_of(settings, self.served, self._control_ids(settings), logprobs, chat)
        path = "/chat/completions" if chat else "/completions"
        count = settings.num_return_sequences
        return [
            _Asked(
                Request(path, {**fields, **body, **seed_of(settings, number)}),
                Reply(request, settings.assistant_prefix),
            )
            for request, body in enumerate(bodies)
            for number in range(count)
        ]

    def _variables(self, settings: CallOptions, others: Mapping[str, Any]) -> dict[str, Any]:
        """The template's variables: the call's, and those that the adapter was trained with.

        Raises:
            ConfigError: a name that is no option, and no variable as far as is known here.
        """
        recorded = self.served.trained.record.template_kwargs
        if not settings.build_message:
            return {**others, **(settings.chat_template_kwargs or {})}
        known = set(USUAL_VARIABLES)
        if self.served.folder is not None and (others or recorded):
            known = template_variables(self.tokenizer)
        names = [*CallOptions.__dataclass_fields__, *sorted(known)]
        raise_all(
            [
                f"{self.where} has no argument '{name}'.{nearest(name, names)} A variable of the "
                "server's chat template is given in chat_template_kwargs={...}."
                for name in others
                if name not in known
            ]
        )
        given = {**others, **(settings.chat_template_kwargs or {})}
        return self.served.trained.variables(given, known)

    def _check_tools(self, settings: CallOptions) -> None:
        """A server drops tools that its template does not write; here that is refused."""
        known = self.served.folder is not None and settings.build_message and settings.tools
        if known and "tools" not in template_variables(self.tokenizer):
            raise ConfigError(
                f"the chat template of '{self.model}' writes no tools: leave out tools."
            )

    def _control_ids(self, settings: CallOptions) -> list[int]:
        """Ids of the stop texts that are one token of the vocabulary's own (vLLM)."""
        if "tokenize" not in self.served.kind.extras:
            return []
        texts = control_texts(settings)
        new = [text for text in texts if text not in self._stop_ids]
        bodies = [{"model": self.model, "prompt": t, "add_special_tokens": False} for t in new]
        for text, found in zip(new, self._tokenized(bodies), strict=True):
            self._stop_ids[text] = found["tokens"] if len(found["tokens"]) == 1 else []
        return [number for text in texts for number in self._stop_ids[text]]

    def _tokenized(self, bodies: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        root = self.options.base_url.removesuffix("/v1")
        return self._link.run([Request(f"{root}/tokenize", body) for body in bodies])

    def _cards(self) -> list[Mapping[str, Any]]:
        """The server's list of models; some have none, or one that fails."""
        try:
            found = self._link.get("/models", patient=False)
        except EngineDiedError:
            raise
        except (ModelError, GenerationError):
            return []
        cards = found.get("data") if isinstance(found, Mapping) else None
        return [card for card in cards or [] if isinstance(card, Mapping)]
