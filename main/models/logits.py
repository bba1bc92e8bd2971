"""Logits of a model on a few prompts, and how far those of another one are from them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


PROBES, PROBE_LENGTH = 2, 16


def probe_prompts(model: Any) -> list[list[int]]:
    """Ids that spread over the whole vocabulary, its ends among them; none that calls for an image.

    Always the same for a model, so that what is found is found again.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    config = model.config.get_text_config()
    named = {**model.config.to_dict(), **config.to_dict()}
    taken = {v for k, v in named.items() if k.endswith(("_token_id", "_token_index"))
             and isinstance(v, int)}  # fmt: skip
    plain = [i for i in range(rows) if i not in taken or i == rows - 1]
    count = PROBES * PROBE_LENGTH
    spread = [plain[i * (len(plain) - 1) // (count - 1)] for i in range(count)]
    return [spread[i::PROBES] for i in range(PROBES)]


def prompt_logits(model: Any, prompts: list[list[int]]) -> "list[torch.Tensor]":
    """(P, V) for every prompt, each alone: no padding to differ in."""
    import torch

    def logits(ids: list[int]) -> torch.Tensor:
        given = torch.tensor([ids], device=model.device)
        return model(input_ids=given, use_cache=False).logits[0].float().cpu()

    with torch.no_grad():
        return [logits(ids) for ids in prompts]


def largest_difference(expected: "list[torch.Tensor]", found: "list[torch.Tensor]") -> float:
    """inf for logits that are not numbers, or of another vocabulary."""
    if any(a.shape != b.shape for a, b in zip(expected, found, strict=True)):
        return float("inf")
    gaps = [(a - b).abs().max().item() for a, b in zip(expected, found, strict=True)]
    return float("inf") if any(gap != gap for gap in gaps) else max(gaps)


def same_top(expected: "list[torch.Tensor]", found: "list[torch.Tensor]") -> float:
    pairs = list(zip(expected, found, strict=True))
    same = sum(int((a.argmax(-1) == b.argmax(-1)).sum()) for a, b in pairs)
    return same / sum(len(a) for a in expected)
