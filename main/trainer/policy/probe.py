"""Whether hidden states times output layer give a model's own logits: measured, not listed.

Some families multiply, cap or shift after the output layer, or run something between the two. A
random copy of the configuration, made small, tells: its log-probabilities as `LogprobModel` takes
them from hidden states, against those of `model(...).logits`, and the gradient of one weight.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from main.errors import MainError
from main.loaders.cache import cache_folder
from main.system.disk import appearing

log = logging.getLogger(__name__)

Score = Callable[[Any, Tensor, Tensor], Tensor]  # (causal model, ids, loss mask) -> log-probs (N,)

VERSION = 1  # raised when the same model may be found otherwise
TOLERANCE = 1e-4  # nats in float32
SPREAD = 8.0  # of a copy's logits: beyond what a cap or a multiplier hides
LARGEST = 100_000_000  # parameters of a copy that is still made
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "vocab_size": 256,
}
_KNOWN: dict[str, bool] = {}


def has_own_logits(model: Any, score: Score) -> bool:
    """Whether only the model itself can say its logits; measured once for a configuration.

    Of a class of transformers' own, what was found is kept on the disk for later processes.

    Args:
        model: a causal language model of transformers; its weights are not looked at.
        score: log-probabilities from hidden states.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        return False
    key = _key(model, config)
    if key not in _KNOWN:
        keeps = type(model).__module__.startswith("transformers.")
        found = _kept(key) if keeps else None
        _KNOWN[key] = own = _measure(model, config, score) if found is None else found
        if keeps and found is None:
            _keep(key, own)
        if own:
            log.warning(
                "%s computes its logits in a way of its own: log-probabilities are taken from "
                "its whole logits, which needs more memory.",
                type(model).__name__,
            )
    return _KNOWN[key]


def _key(model: Any, config: Any) -> str:
    """The class, what the configuration says, and the libraries that compute."""
    said = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    text = json.dumps(said, sort_keys=True, default=str)
    versions = [str(VERSION), transformers.__version__, torch.__version__]
    parts = [type(model).__module__, type(model).__name__, text, *versions]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _kept(key: str) -> bool | None:
    """What an earlier process found; None where there is no such note."""
    try:
        noted = json.loads(_note(key).read_text(encoding="utf-8"))
    except (OSError, ValueError, MainError):
        return None
    return noted if isinstance(noted, bool) else None


def _keep(key: str, own: bool) -> None:
    """A disk that refuses it costs the next process a second, and this one nothing."""
    try:
        _note(key).parent.mkdir(exist_ok=True)
        with appearing(_note(key)) as temporary:
            temporary.write_text(json.dumps(own), encoding="utf-8")
    except (OSError, MainError) as error:
        log.debug("what the probe found is not kept: %s", error)


def _note(key: str) -> Path:
    return cache_folder() / "probes" / f"{key[:32]}.json"


def _measure(model: Any, config: Any, score: Score) -> bool:
    """On a copy; where none can be made or run, on the model itself."""
    for small in _copies(config):
        # a configuration may be made small in ways that its model does not bear: any error is
        # that model's, and the next copy is nearer to the original
        try:
            return _differs(type(model), small, score)
        except Exception as error:
            log.debug("no probe of %s: %s", type(model).__name__, error)
    try:
        return _differs_itself(model, score)
    except Exception as error:
        log.warning(
            "Whether %s computes its logits from its last hidden states alone could not be "
            "measured (%s); it is taken as one that does.",
            type(model).__name__,
            str(error).partition("\n")[0],
        )
        return False


@torch.no_grad()
def _differs_itself(model: Any, score: Score) -> bool:
    """The model's own weights in their dtype, log-probabilities alone."""
    training = model.training
    ids = torch.arange(3, 19, device=model.device).reshape(2, 8)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    model.eval()
    try:
        gap = (score(model, ids, mask) - _own_logprobs(model, ids)).abs().max()
    finally:
        model.train(training)
    return not float(gap) <= (TOLERANCE * 10 if model.dtype == torch.float32 else 0.1)


def _copies(config: Any) -> Iterator[Any]:
    """The smallest first; what a family cannot have smaller stays in the next."""
    heads = {"head_dim", "num_attention_heads", "num_key_value_heads"}
    for kept in (set(), {"head_dim"}, heads, {*heads, "hidden_size"}, set(SMALL)):
        sizes = {name: size for name, size in SMALL.items() if name not in kept}
        yield _shrunk(config, sizes)
        if "num_key_value_heads" in sizes:  # as many as heads, where a family knows no groups
            yield _shrunk(config, sizes | {"num_key_value_heads": SMALL["num_attention_heads"]})


def _shrunk(config: Any, sizes: dict[str, int]) -> Any:
    small = copy.deepcopy(config)
    small._attn_implementation = "eager"
    small.dtype = torch.float32
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    text = small.get_text_config()
    for name, size in sizes.items():
        given = getattr(text, name, None)
        if isinstance(given, int) and given > size:
            setattr(text, name, size)
    _keep_every_kind_of_layer(text)
    for name in ("depth", "num_hidden_layers"):
        if hasattr(getattr(small, "vision_config", None), name):
            setattr(small.vision_config, name, 1)
    for owner in (small, text):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(owner, name, None) is not None:
                setattr(owner, name, 0)
    return small


def _keep_every_kind_of_layer(text: Any) -> None:
    """The first layers, as many as show each kind once."""
    kinds: Any = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if not isinstance(getattr(text, "num_hidden_layers", None), int):
        return
    last = max(kinds.index(kind) for kind in set(kinds)) + 1 if kinds else 2
    if getattr(text, "layer_types", None):
        with suppress(AttributeError):  # derived from other settings in some configurations
            text.layer_types = kinds[:last]
    text.num_hidden_layers = min(last, text.num_hidden_layers)


def _differs(kind: Any, config: Any, score: Score) -> bool:
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(config).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = kind(config).float().eval()
        ids = torch.randint(0, model.get_input_embeddings().weight.shape[0], (2, 8))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _spread_logits(model, ids)
    weight = _first_weight(model)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, 0] = False
    pulls = torch.linspace(-1, 1, int(mask.sum()))
    with torch.enable_grad():
        own = _own_logprobs(model, ids)
        try:
            ours = score(model, ids, mask)
        except Exception:  # it runs, and has no hidden states where others have them
            return True
        slopes = [torch.autograd.grad((found * pulls).sum(), weight)[0] for found in (ours, own)]
    scale = slopes[1].abs().max().clamp(min=1e-3)
    return not (
        float((ours - own).detach().abs().max()) <= TOLERANCE * 5
        and float((slopes[0] - slopes[1]).abs().max() / scale) <= TOLERANCE * 10
    )


def _own_logprobs(model: Any, ids: Tensor) -> Tensor:
    """Of every token but the first of each row, row by row."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (B, T - 1, V)
    return logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()


@torch.no_grad()
def _spread_logits(model: Any, ids: Tensor) -> None:
    """Scale the output layer until its logits spread."""
    head = model.get_output_embeddings()
    for _ in range(4):
        logits = model(input_ids=ids, use_cache=False).logits
        spread = float((logits.amax(-1) - logits.amin(-1)).mean())
        if spread >= SPREAD:
            return
        head.weight.data *= 2 * SPREAD / max(spread, 1e-6)


def _first_weight(model: Any) -> Tensor:
    """The first matrix below embedding and output layer, made to take a gradient."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    outer = {id(layer.weight) for layer in layers}
    matrices = (p for p in model.parameters() if p.ndim == 2 and id(p) not in outer)
    return next(matrices).requires_grad_(True)
