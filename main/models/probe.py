"""What a family of models does: measured on a small random copy of a configuration, not listed.

A `Question` is put to the copy once, and its answer kept on the disk for models of the same
configuration under the same libraries.
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor

from main.system.notes import keep, kept

log = logging.getLogger(__name__)

NOTES = "probes"  # where answers are kept
SPREAD = 8.0  # of a copy's logits: beyond what a cap or a multiplier hides
LIVELY = 0.12  # standard deviation of a copy's matrices where tokens have to see each other
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
    "rotary_dim": 16,
    "vocab_size": 256,
    "vocab_size_per_layer_input": 256,
}
# Heads of state spaces: heads x size is twice the hidden size, as it is in those families.
STATE_SPACES = {
    "num_heads": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 16,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 128,
}
_KNOWN: dict[str, Any] = {}  # by what the answer depends on
_OF_MODEL: "WeakKeyDictionary[Any, dict[str, Any]]" = WeakKeyDictionary()


def forget() -> None:
    """Ask again: for tests."""
    _KNOWN.clear()
    _OF_MODEL.clear()


class Question(NamedTuple):
    """What is asked of a copy.

    name: of the note that keeps the answer. version: raised when the same model may be answered
        otherwise.
    copy: (a small model in float32, frozen, in evaluation mode, its logits spread) -> the answer, a
        JSON value; what it raises says that another copy is to be tried.
    itself: the same of the model itself, where no copy can be made or run; None = not asked.
    unknown: the answer where nothing could be asked.
    """

    name: str
    version: int
    copy: Callable[[Any], Any]
    itself: Callable[[Any], Any] | None
    unknown: Any


def answer(model: Any, question: Question) -> Any:
    """The answer for a model of transformers; its own weights are not looked at if a copy runs.

    Of a class of transformers' own, it is kept on the disk for later processes.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, transformers.PreTrainedConfig):
        return question.unknown
    mine = _OF_MODEL.setdefault(model, {})
    if question.name not in mine:
        mine[question.name] = _answer(model, config, question)
    return mine[question.name]


def _answer(model: Any, config: Any, question: Question) -> Any:
    key = _key(model, config, question)
    if key not in _KNOWN:
        keeps = type(model).__module__.startswith("transformers.")
        found = kept(NOTES, key) if keeps else None
        if found is None:
            found, measured = _ask(model, config, question)
            if keeps and measured:
                keep(NOTES, key, found)
        _KNOWN[key] = found
    return _KNOWN[key]


def enliven(model: Any) -> None:
    """Let every part of a copy count, and its tokens see each other.

    Matrices as they come weigh tokens almost alike, and scales that begin at zero hide what they
    scale.

    Raises:
        ValueError: its logits are no numbers then.
    """
    generator = torch.Generator().manual_seed(0)
    large = (torch.nn.Linear, torch.nn.Embedding)
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, large)}
    for parameter in model.parameters():
        if id(parameter) in matrices:
            parameter.data.normal_(std=LIVELY, generator=generator)
        else:
            parameter.data += LIVELY * torch.randn(parameter.shape, generator=generator)
    _spread_logits(model)
    if not model(input_ids=some_ids(model, 1, 8), use_cache=False).logits.isfinite().all():
        raise ValueError("logits that are no numbers")


def _key(model: Any, config: Any, question: Question) -> str:
    """The question, the class, what the configuration says, and the libraries that compute."""
    said = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    text = json.dumps(said, sort_keys=True, default=str)
    parts = [question.name, str(question.version), type(model).__module__, type(model).__name__]
    parts += [text, transformers.__version__, torch.__version__]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ask(model: Any, config: Any, question: Question) -> tuple[Any, bool]:
    """The answer, and whether it is a copy's: what a lack of memory hid is asked again."""
    # A configuration may be made small in ways that its model does not bear: any error is that
    # model's, and the next copy is nearer to the original.
    for sizes in _sizes():
        try:
            return question.copy(_small_model(type(model), config, sizes)), True
        except Exception as error:
            log.debug("%s asked of a copy of %s: %s", question.name, type(model).__name__, error)
    if question.itself is None:
        return question.unknown, False
    try:
        return question.itself(model), False
    except Exception as error:
        log.warning(
            "%s could not be measured on %s (%s); %r is taken to be true.",
            question.name,
            type(model).__name__,
            str(error).partition("\n")[0],
            question.unknown,
        )
        return question.unknown, False


def _sizes() -> Iterator[dict[str, int]]:
    """The smallest first; what a family cannot have smaller stays in the next."""
    heads = {"head_dim", "num_attention_heads", "num_key_value_heads"}
    for unchanged in (set(), {"head_dim"}, heads, {*heads, "hidden_size"}, set(SMALL)):
        sizes = {name: size for name, size in SMALL.items() if name not in unchanged}
        yield sizes
        if "hidden_size" in sizes:
            yield sizes | STATE_SPACES
        if "num_key_value_heads" in sizes:  # as many as heads, where a family knows no groups
            yield sizes | {"num_key_value_heads": SMALL["num_attention_heads"]}


def _small_model(kind: Any, config: Any, sizes: dict[str, int]) -> Any:
    small = _shrunk(config, sizes)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(small).parameters())
    if size > LARGEST:
        raise MemoryError(f"{size:,} parameters")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        model = kind(small).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    _spread_logits(model)
    return model


def _shrunk(config: Any, sizes: dict[str, int]) -> Any:
    small = copy.deepcopy(config)
    small._attn_implementation = "eager"
    small.dtype = torch.float32
    if hasattr(small, "quantization_config"):
        del small.quantization_config
    text = small.get_text_config()
    for name, size in sizes.items():
        given = _said(text, name)
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


def _said(config: Any, name: str) -> Any:
    """A setting of a configuration; None where it has none, or another for each layer."""
    with suppress(Exception):  # a configuration's own, of any kind
        return getattr(config, name)
    return None


def _keep_every_kind_of_layer(text: Any) -> None:
    """The first layers, as many as show each kind once; again as many that share their keys."""
    kinds: Any = _said(text, "layer_types") or _said(text, "layers_block_type")
    if not isinstance(_said(text, "num_hidden_layers"), int):
        return
    last = max(kinds.index(kind) for kind in set(kinds)) + 1 if kinds else 2
    shares = bool(_said(text, "num_kv_shared_layers"))
    if _said(text, "layer_types"):
        with suppress(AttributeError):  # derived from other settings in some configurations
            text.layer_types = kinds[:last] * (1 + shares)
    text.num_hidden_layers = min(last * (1 + shares), text.num_hidden_layers)
    if shares:
        text.num_kv_shared_layers = last


def some_ids(model: Any, rows: int, tokens: int) -> Tensor:
    """(rows, tokens) of the model's vocabulary, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    known = min(layer.weight.shape[0] for layer in layers if layer is not None)
    ids = torch.randint(0, known, (rows, tokens), generator=generator)
    return ids.to(layers[0].weight.device)


@torch.no_grad()
def _spread_logits(model: Any) -> None:
    """Scale the output layer until its logits spread."""
    head, ids = model.get_output_embeddings(), some_ids(model, 2, 8)
    for _ in range(4):
        logits = model(input_ids=ids, use_cache=False).logits
        spread = float((logits.amax(-1) - logits.amin(-1)).mean())
        if spread >= SPREAD:
            return
        head.weight.data *= 2 * SPREAD / max(spread, 1e-6)
