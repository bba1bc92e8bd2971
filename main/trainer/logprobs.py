"""Hidden states -> log-probabilities of the trained tokens only.

This is the one place that shifts: the token at position t is predicted by the hidden state at
t - 1, or, where it begins a further answer to a shared prompt, by the prompt's last one. Only the
masked positions reach the output layer, so the full (B, T, V) logits never exist, and of the (N, V)
logits of the N trained tokens only one chunk exists at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK_BYTES = 128 * 2**20
# Config entries that change logits after the output layer; such models take the plain path.
_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TokenLogprobs(NamedTuple):
    """Of the N tokens where `loss_mask` is True, row by row.

    logprobs: (N,) float32, nats.
    entropy: (N,) float32, nats, of the predicting distribution; None unless asked for.
    hidden: (N, H), the hidden state that predicted each token.
    """

    logprobs: Tensor
    entropy: Tensor | None
    hidden: Tensor


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

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

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
        **inputs: Any,
    ) -> TokenLogprobs:
        """Score the tokens of `input_ids` where `loss_mask` is True.

        Args:
            input_ids: (B, T).
            loss_mask: (B, T) bool; column 0 must be False, nothing predicts it.
            attention_mask: (B, T) bool, needed for left padding only. Without it rows are taken as
                right-padded: under causal attention no real token sees the padding after it.
                Or (B, 1, T, T) bool with `position_ids`, see main/trainer/branches.py.
            temperature: divides the logits; 1.0 is the model's own distribution.
            entropy: also return the entropy, with gradient unless `entropy_gradient` is False,
                which saves a product with the output layer.
            position_ids: (B, T), by default counted from the first real token. A position that
                does not follow its neighbour's begins another answer to the prompt at the row's
                beginning.
            inputs: further model inputs, such as `pixel_values`.
        """
        if attention_mask is not None:
            inputs["attention_mask"] = attention_mask
            if position_ids is None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        causal_lm = self.causal_lm()
        output = causal_lm.base_model(input_ids=input_ids, use_cache=False, **inputs)
        rows, before = loss_mask[:, 1:].nonzero(as_tuple=True)
        labels = input_ids[rows, before + 1]
        if position_ids is not None:
            before = _predictors(position_ids, rows, before)
        hidden = output.last_hidden_state[rows, before]  # (B, T, H) -> (N, H)
        head = causal_lm.get_output_embeddings()
        if _is_frozen_linear(head, causal_lm.config):
            sloped = entropy and entropy_gradient
            logprobs, entropies = _frozen_head(hidden, head, labels, temperature, entropy, sloped)
        else:
            logprobs, entropies = _any_head(hidden, causal_lm, labels, temperature, entropy)
        if entropies is not None and not entropy_gradient:
            entropies = entropies.detach()
        return TokenLogprobs(logprobs, entropies, hidden)


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
    hidden: Tensor, head: nn.Linear, labels: Tensor, temperature: float, entropy: bool, sloped: bool
) -> tuple[Tensor, Tensor | None]:
    weight = head.weight.detach()
    chunk = _chunk_rows(weight.shape[0])
    logprobs, entropies = _FrozenHead.apply(
        hidden, weight, head.bias, labels, temperature, entropy, sloped, chunk
    )
    return logprobs, entropies if entropy else None


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities under a frozen output layer, their gradient computed on the way.

    With z = W h / tau, d logp(y)/dh = (W[y] - sum_j p_j W[j]) / tau and
    dH/dh = -(sum_j p_j (log p_j + H) W[j]) / tau depend on this token alone, so (N, H) derivatives
    are kept instead of (N, V) logits, and the backward pass is one multiplication.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, labels, temperature, entropy, sloped, chunk):  # type: ignore[override]
        rows = hidden.shape[0]
        needs_grad = hidden.requires_grad
        logprobs = hidden.new_empty(rows, dtype=torch.float32)
        entropies = hidden.new_zeros(rows, dtype=torch.float32)
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
        return logprobs, entropies

    @staticmethod
    def backward(ctx, grad_logprobs, grad_entropies):  # type: ignore[override]
        slope, entropy_slope = ctx.saved_tensors
        grad = grad_logprobs[:, None] * slope
        if entropy_slope is not None:
            grad = grad + grad_entropies[:, None] * entropy_slope
        return grad.to(slope.dtype), None, None, None, None, None, None, None


def _any_head(
    hidden: Tensor, causal_lm: Any, labels: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """The same through the layer's own forward (an adapted, trained or sharded output layer).

    The logits of a chunk are recomputed in the backward pass instead of being kept.
    """
    config = causal_lm.config.get_text_config()
    head = causal_lm.get_output_embeddings()
    # Every entry of a layer that is shared out is a message: as many on every process.
    chunk = max(1, len(labels)) if _is_shared_out(head) else _chunk_rows(config.vocab_size)

    def score(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = transform_logits(head(hidden).float(), config) / temperature
        log_p = logits.log_softmax(-1)
        entropies = -(log_p.exp() * log_p).sum(-1) if entropy else log_p.new_zeros(len(labels))
        return log_p.gather(-1, labels[:, None])[:, 0], entropies

    # An empty selection still runs once, so that every rank enters a sharded layer.
    starts = range(0, max(len(labels), 1), chunk)
    parts = [
        checkpoint(
            score, hidden[start : start + chunk], labels[start : start + chunk], use_reentrant=False
        )
        for start in starts
    ]
    logprobs = torch.cat([part[0] for part in parts])
    return logprobs, torch.cat([part[1] for part in parts]) if entropy else None


def transform_logits(logits: Tensor, config: Any) -> Tensor:
    """What Gemma 2 (soft cap), Cohere (scale) and Granite (divisor) do after the output layer."""
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = (logits / cap).tanh() * cap
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    return logits
