"""Inference with transformers: answers for one request or a batch, whole or as they grow.

predictor = Predictor("models/SmolLM2-135M-Instruct", peft_path=None)
predictor("What is the capital of France?")                     # -> ["..."]
for chunks, texts in predictor.predict_stream("Tell me a story."):
    print(chunks[0], end="")
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from main.errors import GenerationError
from main.models import (
    Quantization,
    context_length,
    load_adapter,
    load_model,
    load_tokenizer,
    stop_token_ids,
)
from main.options import nearest, parse, raise_all
from main.predictor.decode import Row, batches, decode
from main.predictor.request import build_prompts, encode, template_variables
from main.predictor.sampling import GenerationOptions
from main.predictor.text import Answer
from main.vision import load_vision

StreamItem = tuple[list[str], list[str]]


@dataclass
class PredictorOptions:
    """Keyword arguments of `Predictor`.

    model_from_pretrained: folder of the base model, or its name on the hub.
    peft_path (also resume_path): folder of an adapter to put on it.
    dtype, device, device_map, quantization, attn_implementation, trust_remote_code: see
        `main.models.load_model`.
    batch_size: most requests that run at once.
    max_batch_tokens: most tokens, prompts and answers together, that a batch may grow to; None =
        32768 on a CPU and 262144 on a GPU.
    system_prompt: opens every dialogue that has no system message.
    """

    model_from_pretrained: str | Path
    peft_path: str | Path | None = None
    dtype: str | torch.dtype = "auto"
    device: str | torch.device | None = None
    device_map: Any = None
    quantization: Quantization | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    batch_size: int = 64
    max_batch_tokens: int | None = None
    system_prompt: str | None = None

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.batch_size < 1:
            found.append(f"batch_size={self.batch_size} must be >= 1.")
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            found.append(f"max_batch_tokens={self.max_batch_tokens} must be >= 1.")
        return found


class Predictor:
    """A model that answers; greedy and repeatable unless a call asks for sampling."""

    def __init__(
        self,
        model_from_pretrained: str | os.PathLike[str],
        peft_path: str | os.PathLike[str] | None = None,
        **options: Any,
    ):
        """Load the model; the arguments are those of `PredictorOptions`.

        Raises:
            ConfigError: unknown arguments, or values that cannot work.
            MissingFileError, ModelError: see `main.models`.
        """
        given = {"model_from_pretrained": model_from_pretrained, **options}
        if peft_path is not None:
            given["peft_path"] = peft_path
        aliases = {"resume_path": "peft_path"}
        self.options = parse(PredictorOptions, given, "hf.Predictor()", aliases)
        self.tokenizer = _tokenizer(self.options)
        self.model = _model(self.options)
        self.vision = load_vision(model_from_pretrained, self.model.config, self.tokenizer)
        self.stop_ids = frozenset(stop_token_ids(self.model, self.tokenizer))
        self.context = context_length(self.model.config)

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
        answers = [Answer(self.tokenizer, settings.stop_texts) for _ in rows]
        for changed in self._decode(rows, settings):
            for row in changed:
                if row.finished or settings.stop_texts:
                    _update(answers[row.index], row)
        return [answer.text for answer in answers]

    def predict_stream(
        self, query: Any, history: Any = None, max_new_tokens: int = 512, **options: Any
    ) -> Iterator[StreamItem]:
        """Yield `(new_chunks, texts_so_far)`, one entry a request, as tokens arrive.

        The arguments are those of `__call__`, checked at once; the texts end as its result. Even
        an empty answer is one item.
        Decoding runs in the caller's thread, between two items: an error is raised there, and
        closing the generator ends it.
        """
        rows, settings = self._prepare(query, history, max_new_tokens, options)
        return self._stream(rows, settings)

    def _stream(self, rows: list[Row], settings: GenerationOptions) -> Iterator[StreamItem]:
        answers = [Answer(self.tokenizer, settings.stop_texts) for _ in rows]
        shown = False
        for changed in self._decode(rows, settings):
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
    ) -> tuple[list[Row], GenerationOptions]:
        """Check and render the requests; nothing has run yet."""
        options, template_kwargs = self._split(options)
        settings = parse(
            GenerationOptions, {"max_new_tokens": max_new_tokens, **options}, "hf.Predictor call"
        )
        prompts = build_prompts(
            self.tokenizer,
            query,
            history,
            build_message=settings.build_message,
            system_prompt=self.options.system_prompt,
            template_kwargs=template_kwargs,
            vision=self.vision,
        )
        rows: list[Row] = []
        for request, ids in enumerate(encode(self.tokenizer, prompts, self.vision)):
            limit = self._limit(ids, settings.max_new_tokens, request)
            for sequence in range(settings.num_return_sequences):
                row = Row(len(rows), ids, limit, _generator(settings, sequence))
                row.visuals = prompts.images(request)
                rows.append(row)
        return rows, settings

    def _split(self, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(generation options, template variables); any other name is refused."""
        known = {field.name for field in fields(GenerationOptions)}
        if known.issuperset(options):
            return options, {}
        variables = template_variables(self.tokenizer)
        raise_all(
            [
                f"'{name}' is neither an argument of a call nor a variable of this model's chat "
                f"template (its own: {', '.join(sorted(variables)) or 'none'})."
                f"{nearest(name, known | variables)}"
                for name in options
                if name not in known | variables
            ]
        )
        own = {name: value for name, value in options.items() if name in known}
        return own, {name: value for name, value in options.items() if name not in known}

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

    def _decode(self, rows: list[Row], settings: GenerationOptions) -> Iterator[list[Row]]:
        budget = self.options.max_batch_tokens or _default_budget(self.model.device)
        for batch in batches(rows, self.options.batch_size, budget):
            yield from decode(
                self.model,
                batch,
                settings,
                self.stop_ids,
                self.tokenizer.pad_token_id,
                vision=self.vision,
            )


def _tokenizer(options: PredictorOptions) -> Any:
    """The base model's tokenizer, or the adapter's own when it brings one.

    Training may have set another chat template, which the adapter expects at inference too.
    """
    peft_path = options.peft_path
    own = peft_path is not None and (Path(peft_path) / "tokenizer_config.json").is_file()
    path = peft_path if peft_path is not None and own else options.model_from_pretrained
    return load_tokenizer(path, trust_remote_code=options.trust_remote_code)


def _model(options: PredictorOptions) -> Any:
    model = load_model(
        options.model_from_pretrained,
        dtype=options.dtype,
        device=options.device,
        device_map=options.device_map,
        quantization=options.quantization,
        attn_implementation=options.attn_implementation,
        trust_remote_code=options.trust_remote_code,
    )
    if options.peft_path is None:
        return model
    adapted = load_adapter(model, options.peft_path)
    # Merging saves two small products a layer; below float32 it would round the adapter away.
    exact = model.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    return adapted.merge_and_unload() if exact else adapted


def _update(answer: Answer, row: Row) -> str:
    chunk = answer.update(row.completion_ids, row.finished)
    row.finished = row.finished or answer.stopped
    return chunk


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


def _default_budget(device: torch.device) -> int:
    return 32_768 if device.type == "cpu" else 262_144
