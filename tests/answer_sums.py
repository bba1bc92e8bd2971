"""Log-probabilities of whole answers, as the losses of DPO sum them."""

from typing import Any

from torch import Tensor, nn

from main.trainer.dpo.scores import answer_tokens, sums_of


def sequence_logprobs(model: nn.Module, **layout: Any) -> Tensor:
    """Sums (B * A,) of the answers' log-probabilities, in order."""
    return sums_of(answer_tokens(model, **layout).logprobs, layout["lengths"])
