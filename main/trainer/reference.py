"""The starting policy, kept beside the one that is trained: one copy of the base weights.

A fresh adapter starts as the base model, so the reference is the model with the adapter off. An
adapter that starts elsewhere (`resume_path`, PiSSA, a random B) leaves a frozen copy of its start.
"""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from main.adapters import ADAPTER, adapter_tensors
from main.trainer.logprobs import scoring

REFERENCE = "reference"
_SAMPLE = 64  # values of each base parameter


class Reference:
    """Switches a PEFT model to its starting policy and back.

    Args:
        policy: as it is before the first optimizer step.
        starts_as_base: the adapter changes nothing yet (`main.adapters.starts_as_base`).

    fingerprint: changes with anything that the reference's log-probabilities depend on.
    """

    def __init__(self, policy: Any, starts_as_base: bool):
        self.policy, self.starts_as_base = policy, starts_as_base
        if not starts_as_base:
            copy_adapter(policy, REFERENCE)
        self.fingerprint = _fingerprint(policy)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes as it started: no gradient, no dropout; afterwards as before."""
        name = None if self.starts_as_base else REFERENCE
        with scoring(self.policy), switched(self.policy, name):
            yield


@contextmanager
def switched(policy: Any, name: str | None) -> Iterator[None]:
    """The model computes with another adapter, or with none.

    Afterwards the trained adapter is active again. What is trainable stays so, inside as well:
    peft freezes every adapter but the active one.
    """
    trainable = [p for p in policy.parameters() if p.requires_grad]

    def unfreeze() -> None:
        for parameter in trainable:
            parameter.requires_grad_(True)

    try:
        if name is None:
            with policy.disable_adapter():
                yield
        else:
            policy.set_adapter(name, inference_mode=True)
            unfreeze()
            yield
    finally:
        policy.set_adapter(ADAPTER)
        unfreeze()


def copy_adapter(policy: Any, name: str, trainable: bool = False) -> None:
    """A second adapter with the first one's weights, frozen unless `trainable`."""
    from peft import set_peft_model_state_dict

    config = copy.deepcopy(policy.peft_config[ADAPTER])
    config.inference_mode = not trainable
    config.init_lora_weights = True  # PiSSA would take its start out of the base a second time
    policy.add_adapter(name, config)
    start = {key: tensor.clone() for key, tensor in adapter_tensors(policy).items()}
    set_peft_model_state_dict(policy, start, adapter_name=name)
    policy.set_adapter(ADAPTER)
    for key, parameter in policy.named_parameters():
        if f".{name}." in f"{key}.":
            parameter.requires_grad_(trainable)


def _fingerprint(policy: Any) -> str:
    """Of frozen parameters: name, type, shape and a sample of the values; of a copy all values.

    The adapter that is trained is left out: the reference does not use it.
    """
    digest = hashlib.sha256()
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            continue
        copied = f".{REFERENCE}." in f"{name}."
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(_values(parameter, None if copied else _SAMPLE))
    return digest.hexdigest()


def _values(parameter: torch.Tensor, count: int | None) -> bytes:
    """All values, or `count` of them evenly spread."""
    flat = parameter.detach().reshape(-1)
    step = 1 if count is None else max(1, len(flat) // count)
    return flat[::step].cpu().float().numpy().tobytes()
