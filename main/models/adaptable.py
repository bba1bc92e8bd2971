"""Which linear layers an adapter can change: measured on a small copy of a family.

Some layers' weights are read past their module, as by fused kernels of state-space models, some
only choose what others look at, and some are no plain product: an adapter there is counted, saved,
and never moved by training, or does not run.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def linear_modules(model: "PreTrainedModel") -> "list[tuple[str, torch.nn.Module]]":
    """The layers that LoRA can adapt, by their names."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)]


def language_part(model: "PreTrainedModel") -> str:
    """Prefix of the modules of the language model beside a vision tower; '' where all is one."""
    if not hasattr(model.config, "vision_config"):
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." for name, m in model.named_modules() if m is decoder and name), "")


def out_of_reach(model: "PreTrainedModel") -> set[str]:
    """Last parts of names, such as 'dt_proj', whose layers no adapter changes in any place.

    Of the language model; what a vision tower does is not looked at.
    """
    from main.models.probe import Question, answer

    return set(answer(model, Question("layers out of reach", 1, _measured, None, [])))


def _measured(model: Any) -> list[str]:
    import torch

    from main.models.probe import enliven, some_ids

    enliven(model)
    inside = language_part(model)
    layers = [(n, m) for n, m in linear_modules(model) if n.startswith(inside)]
    called: set[str] = set()

    def note(name: str, module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if not isinstance(output, torch.Tensor):
            return
        given, made = inputs[0].shape, output.shape
        sizes = sorted((given[-1], made[-1])) == sorted(module.weight.shape)
        if sizes and made[:-1] == given[:-1]:
            called.add(name)  # x @ W, to which B(A(x)) can be added

    for name, module in layers:
        module.register_forward_hook(functools.partial(note, name))
        module.weight.requires_grad_(True)  # type: ignore[union-attr]
    ids = some_ids(model, 8, 32)
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits.float()
        logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).sum().backward()
    reached = {name for name, module in layers if name in called and _moves(module)}
    within = {_last(name) for name in reached}
    return sorted({_last(name) for name, _ in layers} - within)


def _moves(module: "torch.nn.Module") -> bool:
    gradient: Any = module.weight.grad
    return gradient is not None and bool(gradient.abs().max() > 0)


def _last(name: str) -> str:
    return name.rpartition(".")[2]
