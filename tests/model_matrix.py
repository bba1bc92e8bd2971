"""What becomes of every causal family of transformers: each promise held against the model itself.

A family is made small and random, with an adapter of random weights on 'all-linear'. Its own
logits, row by row and without a cache, are the reference of every cell.
"""

import copy
import gc
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from main.errors import MainError
from main.models import LoraOptions, add_adapter, probe
from main.models.adaptable import out_of_reach
from main.models.merging import merge
from main.models.ragged import use_ragged
from main.predictor.decode import decode
from main.predictor.decoding import Decoding
from main.predictor.keeps_states import keeps_states
from main.predictor.sampling import GenerationOptions
from main.trainer.policy.logprobs import LogprobModel

LARGEST = 100_000_000  # parameters of a family that is still tried
EQUAL = 1e-3  # nats, and share of the largest gradient
NO, RAW = "not tried: its configuration as it comes cannot be made small", "raises"


class Family(NamedTuple):
    """One row of the table. Cells are '=' where all is equal, else what is not.

    name: of the configuration's class, without 'Config'.
    logprobs, gradients: of two padded rows of unequal length, by the trainers' own path.
    packed: the same without padding; 'padded' for families that have to be padded.
    answers: greedy, a batch of three against each alone and whole.
    merged: the merged model's logits against the adapted one's; or why it stays unmerged.
    notes: what is done another way, or left out.
    refusal: why the family is refused, or was not tried here; then there are no cells.
    """

    name: str
    logprobs: str = ""
    gradients: str = ""
    packed: str = ""
    answers: str = ""
    merged: str = ""
    notes: str = ""
    refusal: str = ""

    @property
    def wrong(self) -> list[str]:
        cells = (self.logprobs, self.gradients, self.packed, self.answers)
        found = [cell for cell in cells if cell not in ("=", "padded", "")]
        return found + [self.refusal] * self.refusal.startswith(RAW)


def names() -> list[str]:
    return list(dict.fromkeys(kind.__name__ for kind in MODEL_FOR_CAUSAL_LM_MAPPING))


def family(name: str) -> Family:
    """Everything about one of `names()`."""
    title = name.removesuffix("Config")
    try:
        model = _made(name)
    except Exception as error:  # a configuration's own, of any kind
        return Family(title, refusal=f"{NO}: {type(error).__name__}")
    try:
        return _report(title, model)
    except MainError as error:
        return Family(title, refusal=str(error).partition("\n")[0])
    except Exception as error:  # what a user would meet as it is
        return Family(title, refusal=f"{RAW} {type(error).__name__}")
    finally:
        gc.collect()


def _made(name: str) -> Any:
    config_kind = next(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if kind.__name__ == name)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_kind]
    failure: Exception = ValueError("no size")
    for sizes in probe._sizes():
        try:
            small = probe._shrunk(config_kind(), sizes)
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(copy.deepcopy(small)).parameters())
            if size > LARGEST:
                raise MemoryError(f"{size:,} parameters")
            return _run(kind, small)
        except Exception as error:
            failure = error
    raise failure


def _run(kind: Any, config: Any) -> Any:
    for attention in ("sdpa", "eager"):
        config = copy.deepcopy(config)
        config._attn_implementation = attention
        torch.manual_seed(0)
        try:
            model = kind(config).float().eval()
            break
        except ValueError:
            continue
    probe.enliven(model)
    return model


def _report(name: str, model: Any) -> Family:
    beyond = out_of_reach(model)
    policy = add_adapter(model, LoraOptions(lora_r=2)).eval()
    for parameter in policy.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data, std=0.05)
    ragged = use_ragged(policy.get_base_model())
    scorer = LogprobModel(policy, ragged=ragged)
    rows = _Rows(policy)
    notes = ["its own logits"] * scorer.own_logits
    notes += ["each token anew"] * (not keeps_states(policy))
    notes += [f"no adapter on {', '.join(sorted(beyond))}"] * bool(beyond)
    return Family(
        name,
        logprobs=_cell(lambda: rows.gap(scorer(rows.ids, rows.mask).logprobs)),
        gradients=_cell(lambda: rows.slope_gap(scorer(rows.ids, rows.mask).logprobs)),
        packed=_cell(lambda: rows.packed_gap(scorer)) if ragged else "padded",
        answers=_cell(lambda: rows.answers_gap()),
        merged=_merged(policy),
        notes="; ".join(notes),
    )


class _Rows:
    """Two rows, 9 and 5 tokens long, and what the model itself says of them."""

    def __init__(self, policy: Any):
        self.policy = policy
        self.first, self.second = probe.some_ids(policy.get_base_model(), 2, 9).unbind()
        self.second = self.second[:5]
        self.ids = torch.zeros(2, 9, dtype=torch.long)
        self.ids[0], self.ids[1, :5] = self.first, self.second
        self.mask = torch.zeros(2, 9, dtype=torch.bool)
        self.mask[0, 3:], self.mask[1, 2:5] = True, True
        self.weights = [p for p in policy.parameters() if p.requires_grad]

    def own(self) -> torch.Tensor:
        return torch.cat([self._own(self.first, 3), self._own(self.second, 2)])

    def _own(self, row: torch.Tensor, start: int) -> torch.Tensor:
        logits = self.policy(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        return logits.log_softmax(-1).gather(-1, row[1:, None])[start - 1 :, 0]

    def gap(self, found: torch.Tensor) -> float:
        return float((found - self.own()).detach().abs().max())

    def slope_gap(self, found: torch.Tensor) -> float:
        """Relative to the largest."""
        ours, theirs = (
            torch.autograd.grad(
                value.sum(), self.weights, allow_unused=True, materialize_grads=True
            )
            for value in (found, self.own())
        )
        largest = max(float(slope.abs().max()) for slope in theirs)
        pairs = zip(ours, theirs, strict=True)
        return max(float((a - b).abs().max()) for a, b in pairs) / largest

    def packed_gap(self, scorer: LogprobModel) -> float:
        found = scorer(self.ids, self.mask, lengths=[[9], [5]]).logprobs
        return max(self.gap(found), self.slope_gap(found))

    @torch.no_grad()
    def answers_gap(self) -> float:
        """Of the log-probabilities of greedy answers; infinite where a token is another."""
        prompts = [self.first.tolist(), self.second.tolist(), self.first[:3].tolist()]
        gaps = []
        for group in ([0, 1, 2], [0], [1], [2]):
            rows = [Decoding(i, list(prompts[i]), 6) for i in group]
            for _ in decode(self.policy, rows, GenerationOptions(), (), 0, logprobs=True):
                pass
            for row in rows:
                whole = torch.tensor(row.prompt_ids + row.completion_ids)
                own = self._own(whole, len(row.prompt_ids))
                gaps.append(float((own - torch.tensor(row.logprobs)).abs().max()))
        return max(gaps)


def _cell(measure: Callable[[], float]) -> str:
    try:
        gap = measure()
    except MainError:
        raise
    except Exception as error:  # what a user would meet as it is
        return f"{type(error).__name__}"
    return "=" if gap <= EQUAL else f"{gap:.2g}"


def _merged(policy: Any) -> str:
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        found = merge(policy)
    except MainError:
        raise
    except Exception as error:  # what a user would meet as it is
        return type(error).__name__
    finally:
        logging.disable(level)
    return "beside its base" if found.problem else "="
