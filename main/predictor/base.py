"""What both predictors do alike: check and render a call, turn tokens into texts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal, NamedTuple

import torch

from main.errors import GenerationError
from main.options import nearest, parse, raise_all
from main.predictor.decode import Row
from main.predictor.request import build_prompts, encode, template_variables
from main.predictor.sampling import GenerationOptions
from main.predictor.text import Answer
from main.types import ScoredAnswer

StreamItem = tuple[list[str], list[str]]


class Voice(NamedTuple):
    """Who answers a call.

    tokenizer: renders prompts and decodes answers; an adapter may bring its own.
    stop_ids: tokens that end an answer.
    lead: see `main.predictor.request.answer_lead`.
    adapter: what the engine needs to know of an adapter; None = none, or part of the model.
    """

    tokenizer: Any
    stop_ids: frozenset[int]
    lead: str
    adapter: Any = None


class BasePredictor(ABC):
    """A model that answers; greedy and repeatable unless a call asks for sampling.

    Subclasses set `voice`, `context` (tokens, None = unlimited) and `system_prompt`, and decode.
    """

    where = "Predictor call"
    call_options: type[GenerationOptions] = GenerationOptions
    voice: Voice
    context: int | None
    system_prompt: str | None
    vision: Any = None  # how images become tokens; None for models of text

    @abstractmethod
    def _decode(
        self, rows: list[Row], settings: Any, logprobs: bool = False, stepwise: bool = False
    ) -> Iterator[list[Row]]:
        """Yield the rows that changed until all are finished.

        Args:
            logprobs: collect those of every token in `Row.logprobs`.
            stepwise: the caller needs each token as it comes, not only the finished rows.
        """

    def _voice(self, settings: Any) -> Voice:
        """Who answers a call with these settings."""
        return self.voice

    def __call__(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> list[str]:
        """The answers, always a list, in the order of the requests.

        Args:
            query: `str` = one user turn, `dict` = one message, `list` = a batch of such or of whole
                dialogues.
            history: earlier messages of one query, or a list of such lists for a batch.
            options: see `GenerationOptions`; other names go to the chat template if it knows them
                (`enable_thinking=False`).

        Raises:
            ConfigError: arguments that are unknown or cannot work.
            GenerationError: a prompt longer than the model's context, or too little memory.
        """
        rows, settings = self._prepare(query, history, max_new_tokens, options)
        return [answer.text for answer in self._complete(rows, settings)]

    def predict_with_logprobs(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> list[ScoredAnswer]:
        """The answers with their tokens and the log-probability of each; arguments as `__call__`.

        Log-probabilities are those at the sampling temperature, greedy choices' at temperature 1.
        """
        rows, settings = self._prepare(query, history, max_new_tokens, options)
        answers = self._complete(rows, settings, logprobs=True)
        return [_scored(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def predict_stream(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> Iterator[StreamItem]:
        """Yield `(new_chunks, texts_so_far)`, one entry a request, as tokens arrive.

        The arguments are those of `__call__`, checked at once; the texts end as its result. Even
        an empty answer is one item. An error in generation is raised in the caller's thread, and
        closing the generator ends the generation.
        """
        rows, settings = self._prepare(query, history, max_new_tokens, options)
        return self._stream(rows, settings)

    def _complete(self, rows: list[Row], settings: Any, logprobs: bool = False) -> list[Answer]:
        answers = self._answers(rows, settings)
        watched = bool(settings.stop_texts)
        for changed in self._decode(rows, settings, logprobs, stepwise=watched):
            for row in changed:
                if row.finished or watched:
                    _update(answers[row.index], row)
        return answers

    def _stream(self, rows: list[Row], settings: Any) -> Iterator[StreamItem]:
        answers = self._answers(rows, settings)
        shown = False
        for changed in self._decode(rows, settings, stepwise=True):
            chunks = [""] * len(rows)
            for row in changed:
                chunks[row.index] = _update(answers[row.index], row)
            if any(chunks):
                yield chunks, [answer.text for answer in answers]
                shown = True
        if rows and not shown:
            yield [""] * len(rows), [""] * len(rows)

    def _answers(self, rows: list[Row], settings: Any) -> list[Answer]:
        voice = self._voice(settings)
        lead = voice.lead if settings.build_message else ""
        return [Answer(voice.tokenizer, settings.stop_texts, lead) for _ in rows]

    def _prepare(
        self, query: Any, history: Any, max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[Row], Any]:
        """Check and render the requests; nothing has run yet."""
        known = {field.name for field in fields(self.call_options)}
        own = {name: value for name, value in options.items() if name in known}
        given = {"max_new_tokens": max_new_tokens, **own}
        settings: Any = parse(self.call_options, given, self.where)
        tokenizer = self._voice(settings).tokenizer
        variables = {name: value for name, value in options.items() if name not in known}
        if variables:
            _check_variables(variables, template_variables(tokenizer), known)
        prompts = build_prompts(
            tokenizer,
            query,
            history,
            build_message=settings.build_message,
            system_prompt=self.system_prompt,
            template_kwargs=variables,
            vision=self.vision,
        )
        rows: list[Row] = []
        for request, ids in enumerate(encode(tokenizer, prompts, self.vision)):
            limit = self._limit(ids, settings.max_new_tokens, request)
            for sequence in range(settings.num_return_sequences):
                row = Row(len(rows), ids, limit, _generator(settings, sequence))
                row.visuals = prompts.images(request)
                rows.append(row)
        return rows, settings

    def _limit(self, prompt_ids: list[int], max_new_tokens: int, request: int) -> int:
        """How many tokens may follow the prompt within the context."""
        if not prompt_ids:
            raise GenerationError(f"request {request} is empty: there is nothing to continue.")
        if self.context is None:
            return max_new_tokens
        if len(prompt_ids) >= self.context:
            images = " give its images a smaller max_pixels," if self.vision else ""
            raise GenerationError(
                f"the prompt of request {request} has {len(prompt_ids)} tokens, and the context of "
                f"this model is {self.context}, answer included. Shorten the query,{images} or "
                "drop early turns of its history."
            )
        return min(max_new_tokens, self.context - len(prompt_ids))


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


def _update(answer: Answer, row: Row) -> str:
    chunk = answer.update(row.completion_ids, row.finished)
    row.finished = row.finished or answer.stopped
    return chunk


def _scored(row: Row, answer: Answer) -> ScoredAnswer:
    end = [] if row.stop_id is None else [row.stop_id]
    token_ids = [*row.completion_ids, *end]
    reason: Literal["stop", "length"] = "stop" if end or answer.stopped else "length"
    return ScoredAnswer(answer.text, token_ids, row.logprobs, reason)


def _generator(settings: GenerationOptions, sequence: int) -> torch.Generator | None:
    """Random numbers of a request's answer number `sequence`.

    Without a seed they follow torch's global state.
    """
    if not settings.samples:
        return None
    if settings.seed is None:
        start = int(torch.randint(2**62, (1,)))
    else:
        start = settings.seed * 1_000_003 + sequence
    return torch.Generator().manual_seed(start % 2**63)
