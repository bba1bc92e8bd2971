"""What both predictors do alike: check and render a call, turn tokens into texts."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import count
from typing import Any, Literal

import torch

from main.dialogue.calls import format_of, read_answer
from main.dialogue.episodes import Drawn, Episode
from main.dialogue.outside import Reader, tools_of
from main.dialogue.playing import Limits, play
from main.dialogue.renderer import renderer_of
from main.dialogue.toolbox import Toolbox
from main.dialogue.tools import tool_schemas
from main.errors import ConfigError, GenerationError
from main.predictor.call import Call, Voice, make_call, parse_options, prompts_of
from main.predictor.decoding import Decoding
from main.predictor.running import (
    Requests,
    checked_rounds,
    drawn_of,
    episode_of,
    played,
    refuse_of_one_turn,
    row_of,
)
from main.predictor.sampling import GenerationOptions
from main.predictor.text import Answer
from main.types import PlayedDialogue, ScoredAnswer

StreamItem = tuple[list[str], list[str]]


class BasePredictor(ABC):
    """A model that answers; greedy and repeatable unless a call asks for sampling.

    Subclasses set `voice`, `context` (tokens, None = unlimited) and `system_prompt`, and decode.
    """

    where = "Predictor call"
    call_options: type[GenerationOptions] = GenerationOptions
    voice: Voice
    context: int | None
    vocabulary: int  # rows of the model's embedding
    system_prompt: str | None
    vision: Any = None  # how images become tokens; None for models of text

    @abstractmethod
    def _decode(
        self, rows: list[Decoding], call: Call, logprobs: bool = False, stepwise: bool = False
    ) -> Iterator[list[Decoding]]:
        """Yield the rows that changed until all are finished.

        Args:
            logprobs: collect those of every token in `Decoding.logprobs`.
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
        rows, call = self._prepare(query, history, max_new_tokens, options)
        return [answer.text for answer in self._complete(rows, call)]

    def prompt_ids(self, query: Any, history: Any = None, **options: Any) -> list[list[int]]:
        """Token ids of what the model is asked, one list a request; arguments as `__call__`.

        The placeholder of an image stands as often as the image has features.
        """
        rows, _ = self._prepare(query, history, 1, options)
        return [row.prompt_ids for row in rows]

    def message(self, answer: str | ScoredAnswer, tools: Any = None) -> dict[str, Any]:
        """An answer as a message, to go on from: its content, thoughts and tool calls.

        Args:
            answer: the text; or, where control tokens mark the calls, what `predict_with_logprobs`
                gave, or a text of a call with skip_special_tokens=False.
            tools: as given to the call; they say which arguments are strings where the model's
                way of writing does not.

        Raises:
            ModelError: a model whose way of calling tools is not known, see main/dialogue/calls.py.
        """
        tokenizer = self.voice.tokenizer
        if isinstance(answer, ScoredAnswer):
            text = Reader(tokenizer, self.voice.stop_ids).text(answer.token_ids, special=True)
        else:
            text = answer
        return read_answer(text, format_of(renderer_of(tokenizer)), tool_schemas(tools))

    def run(
        self,
        query: Any,
        history: Any = None,
        tools: Sequence[Callable[..., Any]] = (),
        max_tool_calling_iterations: int = 4,
        max_new_tokens: int = 512,
        tool_timeout: float | None = None,
        **options: Any,
    ) -> list[PlayedDialogue]:
        """The dialogues that come of the requests once the model has called its tools.

        It answers; what it calls is run, and it answers again, until it calls nothing.

        Args:
            query, history, options: as `__call__`; max_new_tokens is that of a turn.
            tools: Python functions with type hints and a docstring that describes every argument.
                They run side by side, `async def` ones on one event loop, others in threads.
            max_tool_calling_iterations: how often tools may answer a request.
            tool_timeout: seconds for a call; None is no limit.

        Raises:
            ConfigError: arguments that cannot work, or a model that does not take tools.
            GenerationError: as `__call__`. A tool that fails is told to the model.
        """
        rounds = checked_rounds(max_tool_calling_iterations, tool_timeout)
        refuse_of_one_turn(options)
        toolbox = Toolbox(tools, tool_timeout)
        given = {**options, "tools": list(tools)}
        asked = self._requests(query, history, max_new_tokens, given)
        if not asked.call.settings.build_message:
            raise ConfigError("tools are shown by a chat template; build_message=False uses none.")
        renderer = renderer_of(self.voice.tokenizer, self.vision)
        outside = tools_of(renderer, asked.call.stop_ids, toolbox)
        episodes = [episode_of(row, d) for row, d in zip(asked.rows, asked.dialogues, strict=True)]

        def draw(going: Sequence[Episode], limits: Sequence[int]) -> list[Drawn]:
            rows = [row_of(*turn) for turn in zip(count(), going, limits, strict=False)]
            for _ in self._decode(rows, asked.call):
                pass
            return [drawn_of(row) for row in rows]

        limits = Limits(turn=max_new_tokens, context=self.context, rounds=rounds)
        play(episodes, draw, outside, limits)
        return [played(episode, rounds) for episode in episodes]

    def predict_with_logprobs(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> list[ScoredAnswer]:
        """The answers with their tokens and the log-probability of each; arguments as `__call__`.

        Log-probabilities are those at the sampling temperature, greedy choices' at temperature 1.
        """
        rows, call = self._prepare(query, history, max_new_tokens, options)
        answers = self._complete(rows, call, logprobs=True)
        return [_scored(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def predict_stream(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> Generator[StreamItem, None, None]:
        """Yield `(new_chunks, texts_so_far)`, one entry a request, as tokens arrive.

        The arguments are those of `__call__`, checked at once; the texts end as its result. Even
        an empty answer is one item. An error in generation is raised in the caller's thread, and
        closing the generator ends the generation.
        """
        rows, call = self._prepare(query, history, max_new_tokens, options)
        return self._stream(rows, call)

    def _complete(self, rows: list[Decoding], call: Call, logprobs: bool = False) -> list[Answer]:
        answers = [_answer(call) for _ in rows]
        watched = bool(call.stop_texts)
        for changed in self._decode(rows, call, logprobs, stepwise=watched):
            for row in changed:
                if row.finished or watched:
                    _update(answers[row.index], row)
        return answers

    def _stream(self, rows: list[Decoding], call: Call) -> Generator[StreamItem, None, None]:
        answers = [_answer(call) for _ in rows]
        shown = False
        for changed in self._decode(rows, call, stepwise=True):
            chunks = [""] * len(rows)
            for row in changed:
                chunks[row.index] = _update(answers[row.index], row)
            if any(chunks):
                yield chunks, [answer.text for answer in answers]
                shown = True
        if rows and not shown:
            yield [""] * len(rows), [""] * len(rows)

    def _prepare(
        self, query: Any, history: Any, max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[Decoding], Call]:
        """Check and render the requests; nothing has run yet."""
        return self._requests(query, history, max_new_tokens, options)[:2]

    def _requests(
        self, query: Any, history: Any, max_new_tokens: int, options: dict[str, Any]
    ) -> Requests:
        given = {"max_new_tokens": max_new_tokens, **options}
        settings, variables = parse_options(self.call_options, given, self.where)
        voice = self._voice(settings)
        asked = settings.build_message
        settings.build_message = voice.trained.builds_message(asked, query, history)
        call = make_call(voice, settings)
        prompts, ids = prompts_of(call, query, history, variables, self.system_prompt, self.vision)
        rows: list[Decoding] = []
        for request, prompt_ids in enumerate(ids):
            limit = self._limit(prompt_ids, settings.max_new_tokens, request)
            for sequence in range(settings.num_return_sequences):
                row = Decoding(len(rows), prompt_ids, limit, _generator(settings, sequence))
                row.visuals = prompts.images(request)
                rows.append(row)
        repeated = [d for d in prompts.dialogues for _ in range(settings.num_return_sequences)]
        return Requests(rows, call, repeated)

    def _limit(self, prompt_ids: list[int], max_new_tokens: int, request: int) -> int:
        """How many tokens may follow the prompt within the context."""
        if not prompt_ids:
            raise GenerationError(f"request {request} is empty: there is nothing to continue.")
        if max(prompt_ids) >= self.vocabulary:
            token = self.voice.tokenizer.convert_ids_to_tokens(max(prompt_ids))
            raise GenerationError(
                f"the prompt of request {request} has the token {token!r} with id "
                f"{max(prompt_ids)}, and the model's embedding has {self.vocabulary} rows. Use the "
                "model's own tokenizer."
            )
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


def _answer(call: Call) -> Answer:
    keep = call.settings.keeps_special
    return Answer(call.voice.tokenizer, call.stop_texts, call.lead, call.begun_ids, keep)


def _update(answer: Answer, row: Decoding) -> str:
    chunk = answer.update(row.completion_ids, row.finished)
    row.finished = row.finished or answer.stopped
    return chunk


def _scored(row: Decoding, answer: Answer) -> ScoredAnswer:
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
