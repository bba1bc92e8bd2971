"""On-policy distillation: a teacher judges each token that the policy drew itself.

    A_t = w (log p_teacher(x_t | x_<t) - log p(x_t | x_<t))

is added to the advantages. Its mean over the policy's own tokens is -w KL(policy || teacher), so
that the policy is drawn to what the teacher thinks likely, and away from what it would not say
(Lu et al. 2025, "On-Policy Distillation"; with lambda = 1 and the reverse divergence it is GKD,
arXiv 2306.13649). Every token has its own credit, where a reward has one for a completion.

A teacher is an adapter on the policy's own base, which costs no second copy of it, or another model
with the same tokenizer.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from main.errors import ConfigError, ModelError
from main.models import load_adapter, load_model, load_tokenizer
from main.models.adapter_files import adapter_folder
from main.models.adapter_fit import (
    check_architecture,
    check_tensors,
    misfit,
    read_for,
    refuse_prompts,
)
from main.models.adapters import ADAPTER, adapter_tensors
from main.models.content import values
from main.models.fused import fuse
from main.models.lora import mutates_base
from main.models.ragged import use_ragged
from main.models.training_record import model_digest
from main.trainer.online.batch import collate
from main.trainer.online.sample import Sample
from main.trainer.policy.branches import takes_branches
from main.trainer.policy.logprobs import LogprobModel, scoring
from main.trainer.policy.reference import switched

log = logging.getLogger(__name__)

TEACHER = "teacher"


class Teacher(ABC):
    """Scores what the policy drew.

    fingerprint: changes with anything that its log-probabilities depend on.
    """

    fingerprint: str

    @abstractmethod
    def logprobs(self, samples: Sequence[Sample], temperature: float) -> Tensor:
        """(N,) nats, of all tokens of the completions, sample after sample."""

    def to(self, device: torch.device) -> None:  # noqa: B027 (optional to override)
        """Be where the policy is."""


class AdapterTeacher(Teacher):
    """A second, frozen adapter on the policy's base.

    Raises:
        MissingFileError: no adapter there.
        ModelError: it does not fit the base, or cannot stand beside the policy's.
    """

    def __init__(self, model: LogprobModel, path: str | Path, pad_id: int, share: bool):
        self.model, self.pad_id, self.share = model, pad_id, share
        tensors = _put_beside(model.model, path)
        self.fingerprint = _digest(tensors)

    def logprobs(self, samples: Sequence[Sample], temperature: float) -> Tensor:
        batch = collate(samples, self.pad_id, self.share).to(_device(self.model))
        with scoring(self.model), switched(self.model.model, TEACHER):
            return LogprobModel.forward(
                self.model, **batch.inputs(), temperature=temperature
            ).logprobs


class ModelTeacher(Teacher):
    """Another model, with an adapter or without; frozen.

    Raises:
        ConfigError: its tokens are not the policy's.
        MissingFileError, ModelError: as loading raises them.
    """

    def __init__(self, path: str | Path, adapter: str | Path | None, like: Any, pad_id: int):
        """like: the trainer, whose tokenizer has to agree and whose dtype and device it takes."""
        setup = like.setup
        trust = setup.trust_remote_code
        check_tokens(like.tokenizer, load_tokenizer(path, trust_remote_code=trust), path)
        model: Any = load_model(
            path, dtype=setup.dtype, device=like.policy.device, trust_remote_code=trust
        )
        if adapter is not None:
            model = load_adapter(model, adapter)
        model.requires_grad_(False).eval()
        base = model.get_base_model() if adapter is not None else model
        self.model = LogprobModel(model, ragged=use_ragged(base))
        self.pad_id, self.share = pad_id, takes_branches(base)
        self.fingerprint = model_digest(model)

    def logprobs(self, samples: Sequence[Sample], temperature: float) -> Tensor:
        batch = collate(samples, self.pad_id, self.share).to(_device(self.model))
        with scoring(self.model):
            return self.model(**batch.inputs(), temperature=temperature).logprobs

    def to(self, device: torch.device) -> None:
        self.model.to(device)


def make_teacher(trainer: Any, pad_id: int) -> Teacher | None:
    """The one that the constructor's arguments name; None = none is named."""
    setup = trainer.setup
    if setup.teacher_from_pretrained is not None:
        return ModelTeacher(setup.teacher_from_pretrained, setup.teacher_peft_path, trainer, pad_id)
    if setup.teacher_peft_path is None:
        return None
    if mutates_base(setup.init_lora_weights) and setup.resume_path is None:
        raise ConfigError(
            f"teacher_peft_path with init_lora_weights={setup.init_lora_weights!r}, which takes "
            "its start out of the base weights that the teacher needs: give "
            "teacher_from_pretrained too, a copy of the base of its own."
        )
    return AdapterTeacher(trainer.model, setup.teacher_peft_path, pad_id, trainer.shares_prompts)


def check_tokens(ours: Any, theirs: Any, path: str | Path) -> None:
    """A teacher speaks of the same tokens under the same numbers.

    Raises:
        ConfigError: one that differs, by name.
    """
    own, other = ours.get_vocab(), theirs.get_vocab()
    for token, number in sorted(own.items(), key=lambda entry: entry[1]):
        if other.get(token) != number:
            there = "unknown" if token not in other else f"number {other[token]}"
            raise ConfigError(
                f"teacher_from_pretrained='{path}' has another tokenizer: token {token!r} is "
                f"number {number} of the policy's and {there} of the teacher's. A teacher "
                "judges tokens, so both must have the same."
            )


def _put_beside(policy: Any, path: str | Path) -> dict[str, Tensor]:
    """The adapter of a folder as a second one; its tensors."""
    from peft import set_peft_model_state_dict

    base, folder = policy.get_base_model(), adapter_folder(path)
    config, tensors = read_for(base, path)
    refuse_prompts(config, folder)
    check_architecture(base, config, folder)
    if config.modules_to_save or config.target_parameters:
        raise ModelError(
            f"adapter '{folder}' trains whole modules or experts and cannot stand beside the "
            "policy's on one base: give teacher_from_pretrained too, a copy of the base of its own."
        )
    trained = [p for p in policy.parameters() if p.requires_grad]
    config.inference_mode = True
    try:
        policy.add_adapter(TEACHER, config)
    except ValueError as error:
        raise ModelError(f"{misfit(folder, base)}: {str(error).splitlines()[0]}") from error
    check_tensors(adapter_tensors(policy, adapter=TEACHER), tensors, misfit(folder, base))
    set_peft_model_state_dict(policy, dict(tensors), adapter_name=TEACHER)
    fuse(policy)
    policy.set_adapter(ADAPTER)
    for parameter in trained:
        parameter.requires_grad_(True)
    return tensors


def _device(model: LogprobModel) -> torch.device:
    return next(model.parameters()).device


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values(tensor))
    return digest.hexdigest()
