"""How the next token is chosen: the options of a call, and the arithmetic on logits (B, V)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass
class GenerationOptions:
    """What a caller may say about one call; greedy unless it says otherwise.

    max_new_tokens: at most so many tokens an answer; less where the model's context ends.
    temperature: None or 0 = greedy; > 0 samples unless do_sample is False.
    do_sample: True = sample (temperature 1 unless given); temperature 0 is greedy all the same.
    top_p, top_k, min_p: sample from the most likely tokens only; see `filter_logits`.
    repetition_penalty: > 1 makes tokens of prompt and answer less likely to come again
        (arXiv 1909.05858, section 4.1).
    no_repeat_ngram_size: no sequence of so many tokens comes twice in prompt and answer; 0 = any.
    stop: text, or list of texts, that end an answer and are not part of it; a control token too.
    stop_token_ids: further tokens that end an answer.
    skip_special_tokens: leave control tokens out of the answers' texts.
    assistant_prefix: what every answer begins with; the model goes on from there.
    tools: JSON schemas or Python functions, which the chat template shows to the model.
    allow_special_tokens: read control tokens in what users, systems and tools say as such; by
        default they are plain characters there and cannot forge a turn.
    seed: makes sampling repeatable: a request's answer is the same alone and in a batch.
    num_return_sequences: answers a request; they follow each other in the result.
    build_message: False = the query is a finished prompt; None = as the adapter was trained, see
        `main.models.training_record`, or True.
    """

    max_new_tokens: int = 512
    temperature: float | None = None
    do_sample: bool | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool = True
    assistant_prefix: str = ""
    tools: Any = None
    allow_special_tokens: bool = False
    seed: int | None = None
    num_return_sequences: int = 1
    build_message: bool | None = None

    @property
    def stop_texts(self) -> list[str]:
        """`stop` as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def keeps_special(self) -> bool:
        """Whether control tokens are shown in the answers."""
        return not self.skip_special_tokens

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature is None:
            return bool(self.do_sample)
        return self.temperature > 0 and self.do_sample is not False

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.max_new_tokens < 1:
            found.append(f"max_new_tokens={self.max_new_tokens} must be >= 1.")
        if self.temperature is not None and not 0 <= self.temperature < float("inf"):
            found.append(f"temperature={self.temperature} must be >= 0; 0 is greedy.")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                found.append(f"{name}={value} must be between 0 and 1.")
        if self.top_k is not None and self.top_k < -1:
            found.append(f"top_k={self.top_k} must be >= 1, or 0 or -1 for all tokens.")
        if self.repetition_penalty <= 0:
            found.append(f"repetition_penalty={self.repetition_penalty} must be > 0; 1 is none.")
        if not all(isinstance(text, str) and text for text in self.stop_texts):
            found.append(f"stop={self.stop!r} must be text that is not empty, or a list of such.")
        if not all(isinstance(i, int) and i >= 0 for i in self.stop_token_ids or []):
            found.append(f"stop_token_ids={self.stop_token_ids!r} must be numbers of tokens.")
        if self.no_repeat_ngram_size < 0:
            found.append(f"no_repeat_ngram_size={self.no_repeat_ngram_size} must be >= 0.")
        return found + self._sampling_problems()

    def _sampling_problems(self) -> list[str]:
        found = []
        if self.num_return_sequences < 1:
            found.append(f"num_return_sequences={self.num_return_sequences} must be >= 1.")
        elif self.num_return_sequences > 1 and not self.samples:
            found.append(
                f"num_return_sequences={self.num_return_sequences} equal answers would come of "
                "greedy decoding. Give temperature > 0 or do_sample=True."
            )
        if self.temperature is None and self.do_sample is None:
            filters = [n for n in ("top_p", "top_k", "min_p") if getattr(self, n) is not None]
            found += [
                f"{name}={getattr(self, name)} changes nothing in greedy decoding, the default. "
                "Give temperature > 0 or do_sample=True with it."
                for name in filters
            ]
        return found


def penalize_repetition(
    logits: "torch.Tensor", seen: "torch.Tensor", penalty: float
) -> "torch.Tensor":
    """Divide positive and multiply negative logits of tokens that occurred.

    Args:
        logits: (B, V).
        seen: (B, V), True for tokens in the row's own prompt or answer (never its padding).
    """
    import torch

    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


class Ngrams:
    """Which tokens would repeat a sequence of n tokens that occurred, of one growing row.

    The rule of transformers' NoRepeatNGramLogitsProcessor, at a cost that does not grow.
    """

    def __init__(self, n: int):
        self.n = n
        self.ids: list[int] = []
        self.followers: dict[tuple[int, ...], list[int]] = {}

    def banned(self, ids: Sequence[int]) -> list[int]:
        """The tokens that may not follow `ids`, which begin with those of the last call."""
        for token in ids[len(self.ids) :]:
            before = tuple(self.ids[len(self.ids) - self.n + 1 :])
            if len(before) == self.n - 1:
                self.followers.setdefault(before, []).append(token)
            self.ids.append(token)
        return self.followers.get(tuple(self.ids[len(self.ids) - self.n + 1 :]), [])


def filter_logits(logits: "torch.Tensor", options: GenerationOptions) -> "torch.Tensor":
    """-inf for tokens outside top_k, then top_p, then min_p; the most likely one always stays.

    Args:
        logits: (B, V), already divided by the temperature.

    top_k keeps the k largest. top_p keeps the smallest set of largest probabilities that reaches
    p (arXiv 1904.09751). min_p drops tokens below p times the largest probability (2407.01082).
    """
    import torch

    if options.top_k is not None and 0 < options.top_k < logits.shape[-1]:
        smallest = logits.topk(options.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if options.top_p is not None and options.top_p < 1:
        ordered, index = logits.sort(descending=True, dim=-1)
        before = ordered.softmax(-1).cumsum(-1).roll(1, -1)  # mass of the likelier tokens
        before[:, 0] = -1.0
        drop = before >= options.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(-1, index, drop), -torch.inf)
    if options.min_p:
        floor = logits.max(-1, keepdim=True).values + torch.tensor(options.min_p).log()
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return logits


def chosen_logprobs(
    logits: "torch.Tensor", tokens: "torch.Tensor", options: GenerationOptions
) -> "torch.Tensor":
    """Log-probabilities, nats, of the chosen tokens (B,) at the sampling temperature.

    Logits (B, V) are those after the repetition penalty and before top_k, top_p and min_p. Greedy
    choices are scored at temperature 1.
    """
    temperature = (options.temperature or 1.0) if options.samples else 1.0
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[:, None])[:, 0] - scaled.logsumexp(-1)


def choose(
    logits: "torch.Tensor",
    options: GenerationOptions,
    generators: "Sequence[torch.Generator | None]",
) -> "torch.Tensor":
    """The next token of each row, (B, V) -> (B,).

    A sampled row draws one number from its own generator and takes the token at that point of the
    cumulative distribution: what others are in the batch changes nothing.
    """
    import torch

    if not options.samples:
        return logits.argmax(-1)
    temperature = 1.0 if options.temperature is None else options.temperature
    kept = filter_logits(logits.float() / temperature, options)
    cumulative = kept.softmax(-1).double().cumsum(-1)  # (B, V)
    draws = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    point = draws.to(cumulative.device) * cumulative[:, -1:]  # (B, 1)
    # right=True: a point on a border belongs to the next token with a probability above zero
    return (
        torch.searchsorted(cumulative, point, right=True)
        .squeeze(-1)
        .clamp(max=logits.shape[-1] - 1)
    )
