"""LoRA options, and the layers of a model that they mean."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from main.errors import ModelError
from main.models.adaptable import language_part, linear_modules, out_of_reach
from main.models.experts import (
    expert_parameters,
    expert_rank,
    taken_for_experts,
    within_layer,
)
from main.options import nearest

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

STATE_SPACE = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
MUTATING_INIT = re.compile(r"pissa(_niter_\d+)?|olora")


@dataclass
class LoraOptions:
    """What adapter to put on a model.

    LoRA: arXiv 2106.09685; PiSSA starts from the principal components: 2404.02948.

    lora_r, lora_alpha, lora_dropout: rank, scale (alpha / r), dropout before the adapter.
    target_modules: 'all-linear' (experts of a mixture too, the output layer not, nor layers that
        no adapter changes, which are named; of a vision-language model the language part alone,
        so that its vision tower stays as it is), names of layers or experts' weights, or one
        regular expression over full module names.
    use_dora: DoRA, magnitude and direction trained apart (arXiv 2402.09353).
    use_rslora: rsLoRA, the scale is alpha / sqrt(r) (arXiv 2312.03732).
    init_lora_weights: True (B = 0), 'gaussian', 'pissa', 'pissa_niter_<n>', 'olora', or False.
    modules_to_save: modules trained whole and kept in the adapter, e.g. ['lm_head'].
    """

    lora_r: int = 16
    lora_alpha: int | float = 32
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.lora_r < 1:
            found.append(f"lora_r={self.lora_r} must be >= 1; 8 to 64 are usual.")
        if self.lora_alpha <= 0:
            found.append(f"lora_alpha={self.lora_alpha} must be > 0; twice lora_r is usual.")
        if not 0 <= self.lora_dropout < 1:
            found.append(f"lora_dropout={self.lora_dropout} must be in [0, 1).")
        if not self.target_modules:
            found.append("target_modules is empty; give 'all-linear' or names of layers.")
        init = self.init_lora_weights
        if isinstance(init, str) and init != "gaussian" and not MUTATING_INIT.fullmatch(init):
            found.append(
                f"init_lora_weights={init!r} must be True, False, 'gaussian', 'pissa', "
                "'pissa_niter_<n>' or 'olora'."
            )
        return found


def starts_as_base(options: LoraOptions) -> bool:
    """Whether a new adapter of this kind leaves the model's output as it is (B = 0)."""
    return options.init_lora_weights in (True, "gaussian")


def mutates_base(init: bool | str) -> bool:
    return isinstance(init, str) and bool(MUTATING_INIT.fullmatch(init))


def peft_config(model: "PreTrainedModel", options: LoraOptions) -> "LoraConfig":
    from peft import LoraConfig

    targets, experts = _targets(model, options)
    rank = expert_rank(model, options.lora_r)
    taken = taken_for_experts(model, targets)
    parameters = [*experts, *_weights_of(model, taken)]
    if taken:
        targets = [name for name in targets if name not in taken]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=options.lora_r,
        lora_alpha=options.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=options.lora_dropout,
        target_modules=targets,
        target_parameters=parameters or None,
        rank_pattern=dict.fromkeys(experts, rank) if rank != options.lora_r else {},
        use_dora=options.use_dora,
        use_rslora=options.use_rslora,
        init_lora_weights=options.init_lora_weights,  # type: ignore[arg-type]
        modules_to_save=options.modules_to_save,
        auto_mapping={
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
    )


def _weights_of(model: "PreTrainedModel", names: set[str]) -> list[str]:
    """What peft is to be told of layers whose names it would take for experts: their weights."""
    layers = [name for name, _ in linear_modules(model) if name.rpartition(".")[2] in names]
    return list(dict.fromkeys(f"{within_layer(name)}.weight" for name in layers))


def _targets(model: "PreTrainedModel", options: LoraOptions) -> tuple[str | list[str], list[str]]:
    """What peft is told: names or a pattern of layers, and names of experts' weights."""
    targets = options.target_modules
    experts = expert_parameters(model, language_part(model))
    if targets == "all-linear":
        return _all_linear(model, options.modules_to_save or []), experts
    if isinstance(targets, str) and not _is_layer_name(targets):
        return targets, []
    given = [targets] if isinstance(targets, str) else list(targets)
    chosen = [e for e in experts if any(f".{e}".endswith(f".{name}") for name in given)]
    layers = [n for n in given if not any(f".{e}".endswith(f".{n}") for e in experts)]
    return layers, chosen


def adapts_experts(model: "PreTrainedModel", options: LoraOptions) -> list[str]:
    """The experts' weights that these options mean."""
    return _targets(model, options)[1]


def describe_targets(config: "LoraConfig", adapted: "PeftModel") -> str:
    """In one line: which modules carry the adapter, and how many parameters are trained."""
    layers = config.target_modules
    names = layers if isinstance(layers, str) else ", ".join(sorted(layers or []))
    ranks = config.rank_pattern or {}
    experts = [f"{e} (rank {ranks.get(e, config.r)})" for e in config.target_parameters or []]
    trained, total = adapted.get_nb_trainable_parameters()
    every = " and ".join(part for part in (names, ", ".join(experts)) if part)
    return f"LoRA of rank {config.r} on {every}: {trained:,} of {total:,} parameters are trained"


def _all_linear(model: "PreTrainedModel", trained_whole: list[str]) -> str | list[str]:
    """Layer names ('q_proj', ...) of every linear layer but the output layer.

    peft would list each full name, and such a file loads on a deeper model without a word: its
    further layers stay bare. Where a short name also means another kind of module, peft decides.
    """
    output = model.get_output_embeddings()
    inside = language_part(model)
    linear = {n for n, m in linear_modules(model) if m is not output and n.startswith(inside)}
    linear = {n for n in linear if not _is_state_space_output(model, n)}
    beyond = out_of_reach(model)
    linear = {n for n in linear if n.rpartition(".")[2] not in beyond}
    linear = {n for n in linear if not any(f".{n}.".find(f".{w}.") >= 0 for w in trained_whole)}
    short = {name.rpartition(".")[2] for name in linear}
    matched = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in short}
    if matched != linear and inside:
        return f"{re.escape(inside)}(.+\\.)?({'|'.join(sorted(short))})"
    return sorted(short) if matched == linear else "all-linear"


def _is_state_space_output(model: "PreTrainedModel", name: str) -> bool:
    """peft refuses layers whose weights the fused state-space kernels read past the adapter."""
    kind = model.config.get_text_config().model_type
    return kind in STATE_SPACE and name.rpartition(".")[2] in ("out_proj", "conv1d")


def _is_layer_name(targets: str | list[str]) -> bool:
    """A plain name such as 'q_proj', which as a regular expression would match no full name."""
    return (
        isinstance(targets, str)
        and targets != "all-linear"
        and bool(re.fullmatch(r"[\w.]+", targets))
    )


def check_modules(model: "PreTrainedModel", options: LoraOptions) -> None:
    """Every name in target_modules and modules_to_save has to match some module.

    Raises:
        ModelError: one does not, or the options ask of a mixture's experts what peft cannot do.
    """
    _check_experts(model, options)
    linear = _linear_names(model)
    names = [name for name, _ in model.named_modules()]
    targets = options.target_modules
    if isinstance(targets, str) and targets != "all-linear" and not _is_layer_name(targets):
        if not any(re.fullmatch(targets, name) for name in names):
            raise ModelError(
                f"target_modules={targets!r} matches no module name. Linear layers: "
                f"{', '.join(linear)}."
            )
        targets = "all-linear"
    wanted = [] if targets == "all-linear" else [targets] if isinstance(targets, str) else targets
    experts = expert_parameters(model)
    names += experts
    for argument, given in (
        ("target_modules", wanted),
        ("modules_to_save", options.modules_to_save),
    ):
        unknown = [n for n in given or [] if not any(f".{m}".endswith(f".{n}") for m in names)]
        if unknown:
            raise ModelError(
                f"{argument}: this {type(model).__name__} has no module {unknown}."
                f"{nearest(unknown[0], linear)} Its linear layers: {', '.join(linear)}."
            )
    beyond = [name for name in wanted if name.rpartition(".")[2] in out_of_reach(model)]
    if beyond:
        raise ModelError(
            f"target_modules: no adapter on {', '.join(beyond)} changes what this "
            f"{type(model).__name__} says: its weights are read past the layer, or only choose "
            "what others look at. Leave it out."
        )


def _check_experts(model: "PreTrainedModel", options: LoraOptions) -> None:
    problems = _problems_of_experts(options)
    if not problems or not (experts := adapts_experts(model, options)):
        return
    raise ModelError(
        f"peft cannot adapt the experts of this {type(model).__name__} ({', '.join(experts)}) with "
        f"{' and '.join(problems)}. Leave that out, or name target_modules without them: "
        f"{_linear_names(model)}."
    )


def _problems_of_experts(options: LoraOptions) -> list[str]:
    """Names of what peft cannot do on experts."""
    asked = {
        f"lora_dropout={options.lora_dropout}": options.lora_dropout > 0,
        "use_dora=True": options.use_dora,
        f"init_lora_weights={options.init_lora_weights!r}": isinstance(
            options.init_lora_weights, str
        ),
    }
    return [name for name, given in asked.items() if given]


def _linear_names(model: "PreTrainedModel") -> list[str]:
    return sorted({name.rpartition(".")[2] for name, _ in linear_modules(model)})
