"""What a batch of rows keeps between two tokens, and how the next one is computed from it."""

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from main.errors import GenerationError
from main.predictor.cache import can_drop_rows, can_join, join, new_cache
from main.predictor.decoding import Decoding, like_lengths
from main.predictor.sampling import (
    GenerationOptions,
    choose,
    chosen_logprobs,
    penalize_repetition,
)


def decode_with(
    state: "State", rows: list[Decoding], stop_ids: Collection[int]
) -> Iterator[list[Decoding]]:
    """Yield the rows that got a token, until all are finished; see `decode`."""
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


def _runs(prompts: Sequence[Any]) -> list[int]:
    """Number of each prompt's run of equal ones, its pictures among what is compared.

    >>> _runs([[7, 8], [7, 8], [9], [7, 8]])
    [0, 0, 1, 2]
    """
    runs: list[int] = []
    for i, prompt in enumerate(prompts):
        runs.append(runs[-1] + (prompt != prompts[i - 1]) if runs else 0)
    return runs


class State:
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
        self.can_drop = self._rows_may_leave()
        self.seen: torch.Tensor | None = None  # (B, V), made with the first logits
        known = _parameters(model)
        self.extra = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
        state_spaces = "cache_params" in known and "past_key_values" not in known
        self.cache_name = "cache_params" if state_spaces else "past_key_values"

    @torch.no_grad()
    def step(self, rows: list[Decoding]) -> tuple[list[int], list[float]]:
        """Run the model on what is new; the next token of each row, and its score if wanted."""
        logits = self._logits(rows)
        _refuse_not_finite(logits, rows)
        if self.options.repetition_penalty != 1:
            logits = self._penalized(logits)
        for i, row in enumerate(rows if self.options.no_repeat_ngram_size else []):
            logits[i, row.banned(self.options.no_repeat_ngram_size)] = -torch.inf
        tokens = choose(logits, self.options, [row.generator for row in rows])
        self._advance(tokens[:, None])
        scores = chosen_logprobs(logits, tokens, self.options).tolist() if self.logprobs else []
        return tokens.tolist(), scores

    def _rows_may_leave(self) -> bool:
        return can_drop_rows(new_cache(self.model, 0))

    def _logits(self, rows: list[Decoding]) -> torch.Tensor:
        """(B, V) after the last token of every row."""
        if self.cache is None:
            return self._prefill()
        return self._forward(self.ids, self.mask, self.positions, self.cache)

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
            use_cache=True,
            **{self.cache_name: cache},
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
        self._keep_states(chosen)

    def _keep_states(self, chosen: torch.Tensor) -> None:
        self.cache.batch_select_indices(chosen)


class Recomputed(State):
    """Every row computed whole and by itself for each token: slow, and right for any model."""

    def _rows_may_leave(self) -> bool:
        return True

    def _logits(self, rows: list[Decoding]) -> torch.Tensor:
        return torch.cat([self._row_logits(row) for row in rows])

    def _row_logits(self, row: Decoding) -> torch.Tensor:
        ids = torch.tensor([row.prompt_ids + row.completion_ids], device=self.model.device)
        output = self.model(input_ids=ids, use_cache=False, **self.extra, **self._pixels([row]))
        return output.logits[:, -1].float()

    def _keep_states(self, chosen: torch.Tensor) -> None:
        pass


def _refuse_not_finite(logits: torch.Tensor, rows: Sequence[Decoding]) -> None:
    """A likeliest token that is no number; -inf for a token that a model rules out is one."""
    broken = ~logits.amax(-1).isfinite()
    if broken.any():
        row = rows[int(broken.nonzero()[0])]
        error = GenerationError(
            f"the model's logits are not finite (nan or inf) at token {len(row.completion_ids)} of "
            f"request {row.index}: its weights or its adapter are broken, or numbers overflow in "
            "this dtype. Load it with dtype='float32' to tell which."
        )
        error.request = row.index
        raise error


def _parameters(model: Any) -> Collection[str]:
    return inspect.signature(base_of(model).forward).parameters


def base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
