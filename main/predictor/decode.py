"""Token-by-token decoding of a batch of prompts; finished rows leave the batch at once."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from main.errors import GenerationError
from main.predictor.cache import can_drop_rows, can_join, join, new_cache
from main.predictor.sampling import (
    GenerationOptions,
    Ngrams,
    choose,
    chosen_logprobs,
    penalize_repetition,
)

LIKE_LENGTH = 0.9  # prompts of one prefill group: the shortest is at least this of the longest


@dataclass
class Decoding:
    """One prompt and the answer so far.

    index: position among the caller's requests.
    limit: tokens that may be generated, within the model's context.
    generator: source of this row's random numbers; None for greedy decoding.
    completion_ids: tokens generated so far, a stop token not among them.
    stop_id: the stop token that ended the answer; None while it goes on or if it was cut.
    logprobs: of `completion_ids` and then `stop_id`, where `decode` was asked for them.
    visuals: the images and videos whose tokens stand in `prompt_ids`, in order.
    """

    index: int
    prompt_ids: list[int]
    limit: int
    generator: torch.Generator | None = None
    completion_ids: list[int] = field(default_factory=list)
    finished: bool = False
    stop_id: int | None = None
    logprobs: list[float] = field(default_factory=list)
    visuals: Sequence[Any] = ()
    ngrams: Ngrams | None = None  # of no_repeat_ngram_size, made when first asked

    @property
    def length(self) -> int:
        """Tokens so far, prompt and answer."""
        return len(self.prompt_ids) + len(self.completion_ids)

    def banned(self, n: int) -> list[int]:
        """Tokens that would repeat a sequence of n tokens."""
        self.ngrams = self.ngrams or Ngrams(n)
        return self.ngrams.banned(self.prompt_ids + self.completion_ids)

    def add(self, token: int, stop_ids: Collection[int]) -> None:
        """Take the next token; a stop token or the limit finishes the row."""
        if token in stop_ids:
            self.finished, self.stop_id = True, token
            return
        self.completion_ids.append(token)
        self.finished = len(self.completion_ids) >= self.limit


def batches(rows: Sequence[Decoding], max_rows: int, max_tokens: int) -> list[list[Decoding]]:
    """Rows of like length together, longest first, so that memory runs out early or never.

    A batch holds at most `max_rows` rows, and rows x (longest prompt + largest limit), what its
    cache may grow to, stays within `max_tokens`; a single row may exceed that.
    """
    cut: list[list[Decoding]] = []
    width = 0
    for row in sorted(rows, key=lambda row: -len(row.prompt_ids)):
        need = max(width, len(row.prompt_ids) + row.limit)
        if not cut or len(cut[-1]) >= max_rows or need * (len(cut[-1]) + 1) > max_tokens:
            cut.append([])
            need = len(row.prompt_ids) + row.limit
        cut[-1].append(row)
        width = need
    return cut


def decode(
    model: Any,
    rows: Sequence[Decoding],
    options: GenerationOptions,
    stop_ids: Collection[int],
    pad_id: int,
    logprobs: bool = False,
    vision: Any = None,
) -> Iterator[list[Decoding]]:
    """Yield the rows that got a token, until all are finished.

    The caller may set `finished` of a row between two steps. When memory runs out, the batch is
    halved and each half goes on from the tokens that it has. With `logprobs` the rows collect those
    of their tokens, see `chosen_logprobs`. `vision` makes the pixels of their images, see
    `main.vision.VisionProcessor`.

    Raises:
        GenerationError: a single row does not fit into memory.
    """
    waiting = [list(rows)]
    with _contiguous_states(model):
        while waiting:
            batch = [row for row in waiting.pop() if not row.finished]
            if not batch:
                continue
            try:
                yield from _decode(model, batch, options, stop_ids, pad_id, logprobs, vision)
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                waiting += _halves(batch, error)
                _free()


@contextmanager
def _contiguous_states(model: Any) -> Iterator[None]:
    """The head gets the prompts' last states (B, 1, H) as a tensor of their own.

    Of a view into (B, P, H) torch makes a batched product, with a copy of the head for every row.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, states: (states[0].contiguous(), *states[1:]))
    try:
        yield
    finally:
        hook.remove()


def _halves(batch: list[Decoding], error: RuntimeError) -> list[list[Decoding]]:
    """Second half first: the list of waiting batches is taken from its end."""
    batch = [row for row in batch if not row.finished]
    if len(batch) == 1:
        row = batch[0]
        raise GenerationError(
            f"out of memory for one request alone: {len(row.prompt_ids)} prompt tokens and up to "
            f"{row.limit} new ones. Shorten the prompt, lower max_new_tokens or use "
            "quantization='4bit'."
        ) from error
    middle = (len(batch) + 1) // 2
    return [batch[middle:], batch[:middle]]


def _decode(
    model: Any,
    rows: list[Decoding],
    options: GenerationOptions,
    stop_ids: Collection[int],
    pad_id: int,
    logprobs: bool,
    vision: Any,
) -> Iterator[list[Decoding]]:
    rows = sorted(rows, key=lambda row: -row.length)
    state = _State(model, rows, options, pad_id, logprobs, vision)
    while running := [row for row in rows if not row.finished]:
        if len(running) < len(rows) and state.can_drop:
            state.keep([i for i, row in enumerate(rows) if not row.finished])
            rows = running
        tokens, scores = state.step(rows)
        for i, row in enumerate(rows):
            if not row.finished:
                row.add(tokens[i], stop_ids)
                row.logprobs += scores[i : i + 1]
        yield running


def like_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut descending lengths into (start, end) groups that padding makes at most 1/9 longer.

    >>> like_lengths([100, 95, 60, 55, 10])
    [(0, 2), (2, 4), (4, 5)]
    """
    groups: list[tuple[int, int]] = []
    for i, length in enumerate(lengths):
        if groups and length >= LIKE_LENGTH * lengths[groups[-1][0]]:
            groups[-1] = (groups[-1][0], i + 1)
        else:
            groups.append((i, i + 1))
    return groups


def _runs(prompts: Sequence[Any]) -> list[int]:
    """Number of each prompt's run of equal ones, its pictures among what is compared.

    >>> _runs([[7, 8], [7, 8], [9], [7, 8]])
    [0, 0, 1, 2]
    """
    runs: list[int] = []
    for i, prompt in enumerate(prompts):
        runs.append(runs[-1] + (prompt != prompts[i - 1]) if runs else 0)
    return runs


class _State:
    """The tensors of a batch: what the next forward pass is given, and the cache."""

    def __init__(
        self,
        model: Any,
        rows: list[Decoding],
        options: GenerationOptions,
        pad_id: int,
        logprobs: bool,
        vision: Any,
    ):
        self.model, self.options, self.logprobs = model, options, logprobs
        ids = [row.prompt_ids + row.completion_ids for row in rows]
        width = max(map(len, ids))
        device = model.device
        padded = [[pad_id] * (width - len(row)) + row for row in ids]
        kept = [[0] * (width - len(row)) + [1] * len(row) for row in ids]
        self.ids = torch.tensor(padded, device=device)  # (B, P), afterwards (B, 1)
        self.mask = torch.tensor(kept, device=device)  # (B, P + T)
        self.positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.vision, self.prompts = vision, rows
        if vision is not None:
            visuals = [visual for row in rows for visual in row.visuals]
            places = vision.positions(model, self.ids, self.mask, visuals)
            self.positions = self.positions if places is None else places  # (3, B, P)
        self.capacity = width + max(row.limit for row in rows)
        self.lengths = [row.length for row in rows]
        self.runs = _runs([(row, rows[i].visuals) for i, row in enumerate(ids)])
        self.cache: Any = None  # made by the first step
        self.can_drop = can_drop_rows(new_cache(model, 0))
        self.seen: torch.Tensor | None = None  # (B, V), made with the first logits
        self.extra = {"logits_to_keep": 1} if _keeps_logits(model) else {}

    @torch.no_grad()
    def step(self, rows: list[Decoding]) -> tuple[list[int], list[float]]:
        """Run the model on what is new; the next token of each row, and its score if wanted."""
        if self.cache is None:
            logits = self._prefill()
        else:
            logits = self._forward(self.ids, self.mask, self.positions, self.cache)
        _refuse_not_finite(logits, rows)
        if self.options.repetition_penalty != 1:
            logits = self._penalized(logits)
        for i, row in enumerate(rows if self.options.no_repeat_ngram_size else []):
            logits[i, row.banned(self.options.no_repeat_ngram_size)] = -torch.inf
        tokens = choose(logits, self.options, [row.generator for row in rows])
        self._advance(tokens[:, None])
        scores = chosen_logprobs(logits, tokens, self.options).tolist() if self.logprobs else []
        return tokens.tolist(), scores

    def _prefill(self) -> torch.Tensor:
        """Run the prompts in groups of like length, so that little of the work is padding.

        Equal prompts that follow each other are run once; then each row gets its copy.
        """
        runs = self.runs if self.can_drop else list(range(len(self.lengths)))
        firsts = [i for i, run in enumerate(runs) if i == 0 or run != runs[i - 1]]
        lengths = [self.lengths[i] for i in firsts]
        groups = like_lengths(lengths)
        if len(groups) > 1 and not can_join(new_cache(self.model, 0)):
            groups = [(0, len(lengths))]
        logits, caches = [], []
        for start, end in groups:
            width = lengths[start]
            part = (torch.tensor(firsts[start:end], device=self.ids.device), slice(-width, None))
            caches.append(new_cache(self.model, width if len(groups) > 1 else self.capacity))
            positions = self.positions[..., *part]
            pixels = self._pixels([self.prompts[i] for i in firsts[start:end]])
            logits.append(
                self._forward(self.ids[part], self.mask[part], positions, caches[-1], pixels)
            )
        self.prompts = []
        self.cache = caches[0] if len(caches) == 1 else join(caches, self.capacity)
        if len(firsts) == len(runs):
            return torch.cat(logits)
        copies = torch.tensor(runs, device=self.ids.device)
        self.cache.batch_select_indices(copies)
        return torch.cat(logits)[copies]

    def _pixels(self, rows: Sequence[Decoding]) -> dict[str, torch.Tensor]:
        if self.vision is None:
            return {}
        names = [f"request {row.index}" for row in rows]
        made = self.vision.inputs([r.prompt_ids for r in rows], [r.visuals for r in rows], names)
        return {name: tensor.to(self.model.device) for name, tensor in made.items()}

    def _forward(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        cache: Any,
        pixels: Mapping[str, torch.Tensor] = MappingProxyType({}),
    ) -> torch.Tensor:
        """Logits (B, V) after the last of `ids` (B, new tokens)."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self.extra,
            **pixels,
        )
        return output.logits[:, -1].float()

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        if self.seen is None:
            counts = torch.zeros_like(logits, dtype=torch.int)
            # padding counts 0
            self.seen = counts.scatter_add(1, self.ids, self.mask.int()).bool()
        return penalize_repetition(logits, self.seen, self.options.repetition_penalty)

    def _advance(self, tokens: torch.Tensor) -> None:
        self.ids = tokens  # (B, 1)
        self.mask = torch.cat([self.mask, torch.ones_like(tokens)], dim=1)
        self.positions = self.positions[..., -1:] + 1  # a prompt ends in text, never in an image
        if self.seen is not None:
            self.seen.scatter_(1, tokens, True)

    def keep(self, indices: list[int]) -> None:
        """Drop all rows but these."""
        chosen = torch.tensor(indices, device=self.ids.device)
        self.ids, self.mask = self.ids[chosen], self.mask[chosen]
        self.positions = self.positions[..., chosen, :]
        self.seen = None if self.seen is None else self.seen[chosen]
        self.cache.batch_select_indices(chosen)


def _refuse_not_finite(logits: torch.Tensor, rows: Sequence[Decoding]) -> None:
    """A likeliest token that is no number; -inf for a token that a model rules out is one."""
    broken = ~logits.amax(-1).isfinite()
    if broken.any():
        row = rows[int(broken.nonzero()[0])]
        raise GenerationError(
            f"the model's logits are not finite (nan or inf) at token {len(row.completion_ids)} of "
            f"request {row.index}: its weights or its adapter are broken, or numbers overflow in "
            "this dtype. Load it with dtype='float32' to tell which."
        )


def _keeps_logits(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
