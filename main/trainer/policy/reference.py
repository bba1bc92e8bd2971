"""The starting policy, kept beside the one that is trained: one copy of the base weights.

A fresh adapter starts as the base model, so the reference is the model with the adapter off. An
adapter that starts elsewhere (`resume_path`, PiSSA, a random B) leaves a frozen copy of its start.
A checkpoint keeps the copy: the reference of a resumed run is the first run's.
"""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from main.models.adapters import ADAPTER, adapter_tensors
from main.models.content import adapter_content, base_content, of_an_adapter, values
from main.trainer.policy.logprobs import scoring

REFERENCE, RESTORED, MOVING = "reference", "restored_reference", "moving_reference"


class Reference:
    """Switches a PEFT model to its starting policy and back.

    Args:
        policy: as it is before the first optimizer step.
        starts_as_base: the adapter changes nothing yet (`main.models.lora.starts_as_base`).
        name: of the adapter that holds the copy.
        kept: the weights of the reference, if it is not the policy as it is.

    fingerprint: changes with anything that the reference's log-probabilities depend on.
    """

    def __init__(
        self,
        policy: Any,
        starts_as_base: bool,
        name: str = REFERENCE,
        kept: Mapping[str, Tensor] | None = None,
    ):
        self.policy, self.starts_as_base, self.name = policy, starts_as_base, name
        self._kept: dict[str, Tensor] = {}
        if not starts_as_base:
            start = adapter_tensors(policy) if kept is None else kept
            self._kept = _on_cpu(start)
            copy_adapter(policy, name, start)
        self.fingerprint = self._fingerprint()  # now: later a placement may share the weights out

    @classmethod
    def restored(cls, policy: Any, tensors: Mapping[str, Tensor]) -> "Reference":
        """That of the run whose checkpoint kept `tensors`, whatever this policy starts from."""
        return cls(policy, not tensors, RESTORED, tensors)

    @property
    def said(self) -> str:
        """What it is, for people."""
        return "the base" if self.starts_as_base else "the adapter as training began"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The copy's weights on the CPU, by their names in a file; none of the base."""
        return self._kept

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(base_content(self.policy).encode())
        if not self.starts_as_base:
            kind = adapter_content(self.policy)
            del kind["lora_dropout"]  # never active in a reference
            digest.update(json.dumps(kind, sort_keys=True).encode())
        for key, tensor in sorted(self._kept.items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(values(tensor))
        return digest.hexdigest()

    @contextmanager
    def active(self) -> Iterator[None]:
        """The model computes as it started: no gradient, no dropout; afterwards as before."""
        name = None if self.starts_as_base else self.name
        with scoring(self.policy), switched(self.policy, name):
            yield


class MovingReference(Reference):
    """A copy of the policy as it is now, or of `kept`, which follows it where it is told to.

    TR-DPO, arXiv 2404.09656, equation 5, on the tensors of the adapter.
    """

    def __init__(self, policy: Any, kept: Mapping[str, Tensor] | None = None):
        super().__init__(policy, False, MOVING, kept)

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Each tensor becomes share * the policy's + (1 - share) * its own."""
        for key, parameter in self.policy.named_parameters():
            if of_an_adapter(self.policy, key, MOVING):
                trained = self.policy.get_parameter(_renamed(key, MOVING, ADAPTER))
                parameter.lerp_(trained.to(parameter.dtype), share)

    @property
    def said(self) -> str:
        return "the policy of some steps before (sync_ref_model)"

    @property
    def tensors(self) -> dict[str, Tensor]:
        return _on_cpu(adapter_tensors(self.policy, adapter=MOVING))


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().cpu().clone() for key, value in tensors.items()}


def _renamed(name: str, before: str, after: str) -> str:
    return f"{name}.".replace(f".{before}.", f".{after}.")[:-1]


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


def copy_adapter(
    policy: Any, name: str, start: Mapping[str, Tensor], trainable: bool = False
) -> None:
    """A second adapter of the first one's kind with the weights `start`, frozen unless `trainable`.

    One of that name that is there already takes them.
    """
    from peft import set_peft_model_state_dict

    trained = [p for p in policy.parameters() if p.requires_grad]
    if name not in policy.peft_config:
        config = copy.deepcopy(policy.peft_config[ADAPTER])
        config.inference_mode = not trainable
        config.init_lora_weights = True  # PiSSA would take its start out of the base a second time
        policy.add_adapter(name, config)
    copied = {key: tensor.clone() for key, tensor in start.items()}
    set_peft_model_state_dict(policy, copied, adapter_name=name)
    policy.set_adapter(ADAPTER)
    for key, parameter in policy.named_parameters():
        if of_an_adapter(policy, key, name):
            parameter.requires_grad_(trainable)
    for parameter in trained:
        parameter.requires_grad_(True)
