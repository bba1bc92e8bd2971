"""Rows of unequal length one behind the other: nothing is computed for padding.

    tokens    a a a a b b c c c     one row of N tokens in the place of (B, T) with its padding
    segments  0       4   6     9   only attention has to know where a row ends

Each segment attends causally to itself and, where it continues a shared prompt, to that prompt: an
answer of a preference pair, a completion of a group. Equal to padded rows, values and gradients.

The function is given to transformers under the name "ragged" by its attention interface. A call
without segments is computed by transformers' own "sdpa". On a GPU in half precision all segments
are one call of flash attention's kernel for unequal lengths (torch.nn.attention.varlen); elsewhere
one causal call a segment computes half the square.
"""

import logging
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

log = logging.getLogger(__name__)

NAME = "ragged"
HALF = (torch.bfloat16, torch.float16)
# What a layer may ask of attention beside the plain causal kind; then rows stay padded.
_OTHER_KINDS = ("sliding_window", "softcap", "s_aux", "position_bias", "cache", "indices")


class Segments(NamedTuple):
    """Where the segments of N tokens lie, on the CPU; see `segments` and `Packing`.

    ends: S + 1 borders, the first 0, the last N.
    prompts: of each segment the borders of the segment before it that it continues, or None.
    """

    ends: list[int]
    prompts: list[tuple[int, int] | None]


def segments(rows: Sequence[Sequence[int]]) -> Segments:
    """Rows that are a prompt's length, then those of the answers that each continue it.

    A row of one length is a sequence of its own.

    >>> segments([[3], [2, 2, 1]])
    Segments(ends=[0, 3, 5, 7, 8], prompts=[None, None, (3, 5), (3, 5)])
    """
    prompts: list[tuple[int, int] | None] = []
    start = 0
    for row in rows:
        prompts += [None, *[(start, start + row[0])] * (len(row) - 1)]
        start += sum(row)
    return Segments([0, *accumulate(length for row in rows for length in row)], prompts)


class Packing(NamedTuple):
    """`Segments` as the attention of every layer takes them, on the device.

    segments: for one call a segment; None = all of them in one call of flash attention, whose
        compiled layers then do not depend on where the segments lie.
    ends, key_ends: (S + 1,) int32, borders of the queries and of the keys of each segment.
    keys: (K,) the tokens whose keys those are; None where every segment sees itself alone.
    longest, longest_keys: tokens of the largest segment.
    """

    segments: Segments | None
    ends: Tensor
    key_ends: Tensor
    keys: Tensor | None
    longest: int
    longest_keys: int


def pack(plan: Segments, device: torch.device, dtype: torch.dtype) -> Packing:
    """The packing for attention on `device`, computed in `dtype`."""
    own = list(pairwise(plan.ends))
    seen = [(*(prompt or (0, 0)), *mine) for prompt, mine in zip(plan.prompts, own, strict=True)]
    sizes = [b - a + d - c for a, b, c, d in seen]
    keys = None
    if any(plan.prompts):
        parts = [torch.arange(x, y) for a, b, c, d in seen for x, y in ((a, b), (c, d))]
        keys = torch.cat(parts).to(device)
    return Packing(
        None if device.type == "cuda" and dtype in HALF else plan,
        torch.tensor(plan.ends, dtype=torch.int32, device=device),
        torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device),
        keys,
        max(end - start for start, end in own),
        max(sizes),
    )


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    ragged: Packing | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention: query (B, H, T, D), key and value (B, G, T, D) -> (B, T, H, D).

    With `ragged`, B is 1, T the tokens of all segments, and `attention_mask` is not looked at.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if ragged is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    other = [name for name in _OTHER_KINDS if kwargs.get(name) is not None]
    if other:
        raise NotImplementedError(f"attention with {other[0]} over segments")
    if ragged.segments is None:
        return _flash(query, key, value, scaling, ragged), None
    return _one_by_one(query, key, value, scaling, ragged.segments), None


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, packing: Packing
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # (1, H, T, D) -> (T, H, D)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if packing.keys is not None:
        k, v = k[packing.keys], v[packing.keys]
    mixed: Any = varlen_attn(
        q,
        k,
        v,
        packing.ends,
        packing.key_ends,
        packing.longest,
        packing.longest_keys,
        scale=scaling,
        window_size=(-1, 0),  # causal, aligned at the segments' ends
    )
    return mixed[None]


def _one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    plan: Segments,
) -> Tensor:
    parts = []
    for (start, end), prompt in zip(pairwise(plan.ends), plan.prompts, strict=True):
        k, v = key[:, :, start:end], value[:, :, start:end]
        mask = None
        if prompt is not None and prompt[1] > prompt[0]:
            first, last = prompt
            k, v = (torch.cat([x[:, :, first:last], own], 2) for x, own in ((key, k), (value, v)))
            mask = _after_prompt(end - start, k.shape[2], query.device)
        parts.append(
            scaled_dot_product_attention(
                query[:, :, start:end],
                k,
                v,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(parts, 2).transpose(1, 2)


def _after_prompt(queries: int, keys: int, device: torch.device) -> Tensor:
    """(Q, K) bool: all of the prompt, and the answer up to the token itself."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def use_ragged(model: Any) -> bool:
    """Let a transformers model take rows without padding; False, and nothing done, if it cannot.

    Not by its name: on a few tokens, the states of every segment have to be those of its tokens
    computed alone, which they are not where a layer looks across borders or at the padding.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    config = model.config
    if config._attn_implementation != "sdpa" or hasattr(config, "vision_config"):
        return False
    if getattr(config, "attention_dropout", 0.0):
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    training = model.training
    try:
        model.set_attn_implementation(NAME)
        if _holds(model.eval()):
            return True
    except Exception as error:  # the model's own, of any kind: it does not take them
        log.debug("%s takes no rows without padding: %s", type(model).__name__, error)
    finally:
        model.train(training)
    model.set_attn_implementation("sdpa")
    return False


def states(model: Any, input_ids: Tensor, position_ids: Tensor, plan: Segments) -> Tensor:
    """Last hidden states (N, H) of the N tokens (1, N) of the segments."""
    kind = input_ids.device.type
    autocast = torch.is_autocast_enabled(kind)
    dtype = torch.get_autocast_dtype(kind) if autocast else model.dtype
    packing = pack(plan, input_ids.device, dtype)
    # A mask of four dimensions is taken as it is: none is built, and attention looks at `ragged`.
    no_mask = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=input_ids.device)
    output = model.base_model(
        input_ids=input_ids,
        position_ids=position_ids,
        attention_mask=no_mask,
        use_cache=False,
        ragged=packing,
    )
    return output.last_hidden_state[0]


@torch.no_grad()
def _holds(model: Any) -> bool:
    embedding = model.get_input_embeddings().weight
    device = embedding.device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, embedding.shape[0], (1, 16), generator=generator).to(device)
    positions = torch.tensor([[*range(6), *range(3), *range(3, 6), *range(3, 7)]], device=device)
    found = states(model, ids, positions, segments([[6], [3, 3, 4]])).float()
    before, prompt, first, second = ids[0].split([6, 3, 3, 4])
    alone = [before, torch.cat([prompt, first]), torch.cat([prompt, second])]
    outputs = [model.base_model(input_ids=row[None], use_cache=False) for row in alone]
    rows = [output.last_hidden_state[0].float() for output in outputs]
    expected = torch.cat([rows[0], rows[1], rows[2][3:]])
    gap = (found - expected).norm() / expected.norm()
    return bool(gap < (1e-4 if embedding.dtype == torch.float32 else 0.1))
