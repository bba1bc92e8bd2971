"""Hidden states -> log-probabilities of the trained tokens only.

This is the one place that shifts: the token at position t is predicted by the hidden state at
t - 1, or, where it begins a further answer to a shared prompt, by the prompt's last one. Only the
masked positions reach the output layer, so the full (B, T, V) logits never exist, and of the (N, V)
logits of the N trained tokens only one chunk exists at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from main.errors import ModelError
from main.models import ragged
from main.models.work import NOTHING, Work, matrices_of
from main.trainer.policy.branches import visible
from main.trainer.policy.own_logits import LOOKS_AHEAD, WHOLE, logits_of

CHUNK_BYTES = 128 * 2**20
# Config entries that change logits after the output layer; such models take the plain path.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TokenLogprobs(NamedTuple):
    """Of the N tokens where `loss_mask` is True, row by row.

    logprobs: (N,) float32, nats.
    entropy: (N,) float32, nats, of the predicting distribution; None unless asked for.
    hidden: (N, H), the hidden state that predicted each token.
    concentration: (N,) float32, log of the sum of the squared probabilities, without gradient; None
        unless asked for.
    """

    logprobs: Tensor
    entropy: Tensor | None
    hidden: Tensor
    concentration: Tensor | None = None


class _Scored(NamedTuple):
    """The same without the hidden states."""

    logprobs: Tensor
    entropy: Tensor | None = None
    concentration: Tensor | None = None


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """No gradient and no dropout, for old and reference log-probabilities; the mode is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class LogprobModel(nn.Module):
    """A causal language model whose forward returns log-probabilities instead of logits."""

    def __init__(self, model: nn.Module, ragged: bool = False):
        """`ragged`: whether the model takes rows without their padding (main/models/ragged.py).

        What passes need is counted in `work`.

        Raises:
            ModelError: a model that looks ahead.
        """
        super().__init__()
        self.model = model
        self.ragged = ragged
        found = logits_of(self.causal_lm(), _logprobs_of)
        if found == LOOKS_AHEAD:
            raise ModelError(
                f"{type(self.causal_lm()).__name__} is no causal model as it is configured: what "
                "it says of a token depends on later ones, or on padding after it. Set is_decoder "
                "in its config, or use another base."
            )
        self.own_logits = found == WHOLE
        self.work = Work(matrices_of(self.causal_lm()))

    def causal_lm(self) -> Any:
        """The transformers model, without PEFT's wrapper around it."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "peft_config") else model

    def forward(
        self,
        input_ids: Tensor,
        loss_mask: Tensor,
        attention_mask: Tensor | None = None,
        temperature: float = 1.0,
        entropy: bool = False,
        position_ids: Tensor | None = None,
        entropy_gradient: bool = True,
        branch: Tensor | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
        concentration: bool = False,
        **inputs: Any,
    ) -> TokenLogprobs:
        """Score the tokens of `input_ids` where `loss_mask` is True.

        Args:
            input_ids: (B, T).
            loss_mask: (B, T) bool; column 0 must be False, nothing predicts it.
            attention_mask: (B, T) bool, needed for left padding only. Without it rows are taken as
                right-padded: under causal attention no real token sees the padding after it.
                Or (B, 1, T, T) bool with `position_ids`, see main/trainer/policy/branches.py.
            temperature: divides the logits; 1.0 is the model's own distribution.
            entropy: also return the entropy, with gradient unless `entropy_gradient` is False,
                which saves a product with the output layer.
            position_ids: (B, T), by default counted from the first real token. A position that
                does not follow its neighbour's begins another answer to the prompt at the row's
                beginning.
            branch: (B, T), the number of the answer that a token belongs to, 0 in the prompt that
                they share, see main/trainer/policy/branches.py; needs `position_ids`.
            lengths: of each right-padded row the tokens of its prompt and of every answer that
                continues it, or of the whole: with them no padding is computed, and no mask is
                needed, where the model is `ragged`.
            concentration: also return that of the predicting distribution.
            inputs: further model inputs, such as `pixel_values`.
        """
        hidden, own = self._predicting(
            input_ids, loss_mask, attention_mask, position_ids, branch, lengths, **inputs
        )
        labels = input_ids[:, 1:][loss_mask[:, 1:]]
        causal_lm = self.causal_lm()
        head = causal_lm.get_output_embeddings()
        if own is not None:
            found = _score(own.float() / temperature, labels, entropy, concentration)
        elif _is_frozen_linear(head, causal_lm.config):
            asked = entropy, entropy and entropy_gradient, concentration
            found = _frozen_head(hidden, head, labels, temperature, *asked)
        else:
            found = _any_head(hidden, causal_lm, labels, temperature, entropy, concentration)
        entropies = found.entropy
        if entropies is not None and not entropy_gradient:
            entropies = entropies.detach()
        return TokenLogprobs(found.logprobs, entropies, hidden, found.concentration)

    def states(
        self,
        input_ids: Tensor,
        loss_mask: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        branch: Tensor | None = None,
        lengths: Sequence[Sequence[int]] | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Hidden states (N, H) that predict the tokens where `loss_mask` is True; see `forward`."""
        return self._predicting(
            input_ids, loss_mask, attention_mask, position_ids, branch, lengths, **inputs
        )[0]

    def _predicting(
        self,
        input_ids: Tensor,
        loss_mask: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        branch: Tensor | None,
        lengths: Sequence[Sequence[int]] | None,
        **inputs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`states`, and of a model whose logits are its own these (N, V) too."""
        causal_lm = self.causal_lm()
        rows, before = loss_mask[:, 1:].nonzero(as_tuple=True)
        tokens = input_ids.numel() if lengths is None else sum(map(sum, lengths))
        self.work.add(tokens, len(rows), torch.is_grad_enabled())
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if position_ids is not None:
            before = _predictors(position_ids, rows, before)
        if lengths is not None and self.ragged and not inputs and not self.own_logits:
            found = _ragged_states(causal_lm, input_ids, position_ids, lengths, rows, before)
            return found, None
        mask = attention_mask if branch is None else visible(branch)
        given = {"attention_mask": mask, "position_ids": position_ids}
        inputs |= {name: value for name, value in given.items() if value is not None}
        inputs |= {"input_ids": input_ids, "use_cache": False}
        if self.own_logits:
            whole = causal_lm(output_hidden_states=True, **inputs)
            return whole.hidden_states[-1][rows, before], whole.logits[rows, before]
        output = causal_lm.base_model(**inputs)
        return output.last_hidden_state[rows, before], None  # (B, T, H) -> (N, H)


def _ragged_states(
    causal_lm: Any,
    input_ids: Tensor,
    position_ids: Tensor | None,
    lengths: Sequence[Sequence[int]],
    rows: Tensor,
    columns: Tensor,
) -> Tensor:
    """Hidden states (N, H) at `rows`, `columns` of (B, T), computed without the padding."""
    sizes = torch.tensor([sum(row) for row in lengths], device=input_ids.device)
    every = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    real = every < sizes[:, None]  # (B, T)
    positions = every if position_ids is None else position_ids
    plan = ragged.segments(lengths)
    hidden = ragged.states(causal_lm, input_ids[real][None], positions[real][None], plan)
    return hidden[(sizes.cumsum(0) - sizes)[rows] + columns]


def _predictors(position_ids: Tensor, rows: Tensor, before: Tensor) -> Tensor:
    """Columns (N,) that predict the tokens in the columns after `before`."""
    last = position_ids[rows, before + 1] - 1
    follows = position_ids[rows, before] == last
    return torch.where(follows, before, last)  # the prompt's columns are its positions


def _is_frozen_linear(head: nn.Module, config: Any) -> bool:
    """True if the output layer is a plain matrix that takes no gradient."""
    return (
        type(head) is nn.Linear
        and type(head.weight) is nn.Parameter
        and not _is_shared_out(head)
        and not any(parameter.requires_grad for parameter in head.parameters())
        and not _transforms_logits(config)
    )


def _is_shared_out(module: nn.Module) -> bool:
    """Whether ZeRO-3 lends the layer its weights only while its own forward runs."""
    return any(hasattr(parameter, "ds_id") for parameter in module.parameters())


def _transforms_logits(config: Any) -> bool:
    text = config.get_text_config()
    return any(getattr(text, name, None) not in (None, 1, 1.0) for name in _LOGIT_TRANSFORMS)


def _chunk_rows(vocabulary: int) -> int:
    return max(1, CHUNK_BYTES // (4 * vocabulary))


def _frozen_head(
    hidden: Tensor,
    head: nn.Linear,
    labels: Tensor,
    temperature: float,
    entropy: bool,
    sloped: bool,
    concentration: bool,
) -> _Scored:
    weight = head.weight.detach()
    chunk = _chunk_rows(weight.shape[0])
    logprobs, entropies, squares = _FrozenHead.apply(
        hidden, weight, head.bias, labels, temperature, entropy, sloped, concentration, chunk
    )
    return _Scored(logprobs, entropies if entropy else None, squares if concentration else None)


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a frozen output layer, their gradient computed on the way.

    With z = W h / tau, d logp(y)/dh = (W[y] - sum_j p_j W[j]) / tau and
    dH/dh = -(sum_j p_j (log p_j + H) W[j]) / tau depend on this token alone, so (N, H) derivatives
    are kept instead of (N, V) logits, and the backward pass is one multiplication.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx, hidden, weight, bias, labels, temperature, entropy, sloped, concentration, chunk
    ):
        rows = hidden.shape[0]
        needs_grad = hidden.requires_grad
        logprobs = hidden.new_empty(rows, dtype=torch.float32)
        entropies = hidden.new_zeros(rows, dtype=torch.float32)
        squares = hidden.new_zeros(rows, dtype=torch.float32)
        slope = torch.empty_like(hidden) if needs_grad else None
        entropy_slope = torch.empty_like(hidden) if needs_grad and sloped else None
        for start in range(0, rows, chunk):
            part = slice(start, start + chunk)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            if temperature != 1.0:
                logits /= temperature
            peak = logits.amax(-1, keepdim=True)
            logits -= peak
            chosen = logits.gather(-1, labels[part, None])
            if entropy:
                shifted = logits.clone()
            odds = logits.exp_()  # unnormalised probabilities, in the memory of the logits
            total = odds.sum(-1, keepdim=True)
            logprobs[part] = (chosen - total.log())[:, 0]
            if concentration:
                squares[part] = (odds.square().sum(-1, keepdim=True).log() - 2 * total.log())[:, 0]
            if slope is not None:
                mean_weight = (odds.to(weight.dtype) @ weight) / total
                slope[part] = ((weight[labels[part]] - mean_weight) / temperature).to(slope.dtype)
            if entropy:
                log_p = shifted - total.log()
                p = odds / total
                entropies[part] = -(p * log_p).sum(-1)
            if entropy_slope is not None:
                pull = p * (log_p + entropies[part, None])
                entropy_slope[part] = -((pull.to(weight.dtype) @ weight) / temperature).to(
                    entropy_slope.dtype
                )
        ctx.save_for_backward(slope, entropy_slope)
        ctx.mark_non_differentiable(squares)
        return logprobs, entropies, squares

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies, _):  # type: ignore[override]
        slope, entropy_slope = ctx.saved_tensors
        grad = grad_logprobs[:, None] * slope
        if entropy_slope is not None:
            grad = grad + grad_entropies[:, None] * entropy_slope
        return grad.to(slope.dtype), *[None] * 8


def _logprobs_of(causal_lm: Any, input_ids: Tensor, loss_mask: Tensor) -> Tensor:
    """By hidden states and output layer, for the probe that decides whether they suffice."""
    model = LogprobModel.__new__(LogprobModel)
    nn.Module.__init__(model)
    model.model, model.own_logits, model.ragged = causal_lm, False, False
    model.work = Work(NOTHING)
    return model(input_ids, loss_mask).logprobs


def _score(logits: Tensor, labels: Tensor, entropy: bool, concentration: bool) -> _Scored:
    """Log-probabilities (N,) of the labels and, if asked for, the other two of logits (N, V)."""
    log_p = logits.log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1) if entropy else None
    squares = (2 * log_p.detach()).logsumexp(-1) if concentration else None
    return _Scored(log_p.gather(-1, labels[:, None])[:, 0], entropies, squares)


def _any_head(
    hidden: Tensor,
    causal_lm: Any,
    labels: Tensor,
    temperature: float,
    entropy: bool,
    concentration: bool,
) -> _Scored:
    """The same through the layer's own forward (an adapted, trained or sharded output layer).

    The logits of a chunk are recomputed in the backward pass instead of being kept.
    """
    config = causal_lm.config.get_text_config()
    head = causal_lm.get_output_embeddings()
    # Every entry of a layer that is shared out is a message: as many on every process.
    chunk = max(1, len(labels)) if _is_shared_out(head) else _chunk_rows(config.vocab_size)

    def score(hidden: Tensor, labels: Tensor) -> tuple[Tensor | None, ...]:
        logits = transform_logits(head(hidden).float(), config) / temperature
        return tuple(_score(logits, labels, entropy, concentration))

    # An empty selection still runs once, so that every rank enters a sharded layer.
    starts = range(0, max(len(labels), 1), chunk)
    parts = [
        checkpoint(
            score, hidden[start : start + chunk], labels[start : start + chunk], use_reentrant=False
        )
        for start in starts
    ]
    columns: list[Any] = [
        None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True)
    ]
    return _Scored(*columns)


def transform_logits(logits: Tensor, config: Any) -> Tensor:
    """What Gemma 2 (soft cap), Cohere (scale) and Granite (divisor) do after the output layer."""
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    return logits
