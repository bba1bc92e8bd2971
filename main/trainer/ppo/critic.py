"""Policy and critic on one copy of the base weights.

The critic is a linear head on the final hidden state, scaled to length 10, before each token:
V(s) = w . 10 h / |h| + b in float32, w = 0 at the start. A step of Adam then moves V by up to
10 lr sqrt(H): about 0.05 for lr 2e-4 and H = 576, whatever the size of the model's hidden states.
Three kinds:

    'head'      on the policy's hidden states; its gradient reaches the policy's adapter, so that
                the weights of the loss terms matter as in PPO, arXiv 1707.06347, equation 9
    'detached'  the same without that gradient: the critic reads the policy and never changes it
    'adapter'   on the hidden states of its own LoRA adapter, a copy of the policy's at the start
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from main.errors import MissingFileError, ModelError
from main.models.adapters import adapter_tensors
from main.system.settings import read_settings
from main.trainer.policy.logprobs import LogprobModel
from main.trainer.policy.reference import copy_adapter, switched
from main.trainer.ppo.options import CriticKind

CRITIC = "critic"
STATE_LENGTH = 10.0
WEIGHTS, SETTINGS = "critic.safetensors", "critic.json"


class ActorCriticOutput(NamedTuple):
    """Of the N tokens where `loss_mask` is True, row by row.

    logprobs, entropy: as in `TokenLogprobs`.
    values: (N,) float32, of the state before each token.
    """

    logprobs: Tensor
    entropy: Tensor | None
    values: Tensor


def is_of_critic(name: str) -> bool:
    """Whether a parameter of an `ActorCritic` with this name is the critic's own."""
    return "value_head." in name or f".{CRITIC}." in name


class ValueHead(nn.Module):
    """Hidden states (N, H) -> values (N,), in float32 under autocast too."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, hidden_size))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            states = STATE_LENGTH * nn.functional.normalize(hidden.float(), dim=-1)
            return states @ self.weight[0] + self.bias


class ActorCritic(LogprobModel):
    """A policy whose forward also returns the critic's values."""

    def __init__(self, policy: Any, kind: CriticKind = "detached", ragged: bool = False):
        super().__init__(policy, ragged)
        self.kind = kind
        self.value_head = ValueHead(self.causal_lm().config.get_text_config().hidden_size)
        self.value_head.to(policy.device)
        if kind == "adapter":
            copy_adapter(policy, CRITIC, adapter_tensors(policy), trainable=True)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        loss_mask: Tensor,
        temperature: float = 1.0,
        entropy: bool = False,
        entropy_gradient: bool = True,
        critic: bool = True,
        lengths: Sequence[Sequence[int]] | None = None,
    ) -> ActorCriticOutput:
        """Score the tokens of right-padded `input_ids` (B, T); see `LogprobModel.forward`.

        Without `critic`, as the reference needs it, the values are empty.
        """
        scored = super().forward(
            input_ids,
            loss_mask,
            temperature=temperature,
            entropy=entropy,
            entropy_gradient=entropy_gradient,
            lengths=lengths,
        )
        if not critic:
            return ActorCriticOutput(scored.logprobs, scored.entropy, scored.logprobs.new_empty(0))
        hidden = scored.hidden if self.kind == "head" else scored.hidden.detach()
        if self.kind == "adapter":
            with switched(self.model, CRITIC):
                hidden = self.states(input_ids, loss_mask, lengths=lengths)
        return ActorCriticOutput(scored.logprobs, scored.entropy, self.value_head(hidden))

    def critic_tensors(self) -> dict[str, Tensor]:
        """What a critic is made of, by the names that it has in a file."""
        named = self.value_head.state_dict(prefix="value_head.")
        if self.kind == "adapter":
            from peft import get_peft_model_state_dict

            adapter = get_peft_model_state_dict(
                self.model, adapter_name=CRITIC, save_embedding_layers=False
            )
            named |= {f"adapter.{name}": tensor for name, tensor in adapter.items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    def settings(self) -> dict[str, Any]:
        """What has to agree between a saved critic and the model it is loaded for."""
        return {
            "critic": "adapter" if self.kind == "adapter" else "head",
            "hidden_size": self.value_head.weight.shape[1],
        }

    def save_critic(self, directory: Path) -> None:
        from safetensors.torch import save_file

        save_file(self.critic_tensors(), directory / WEIGHTS)
        text = json.dumps(self.settings(), indent=1)
        (directory / SETTINGS).write_text(text, encoding="utf-8")

    def load_critic(self, directory: str | Path) -> None:
        """Take the weights that `save_critic` wrote.

        Raises:
            MissingFileError: no critic there.
            ModelError: it was trained for another hidden size, another kind of critic, or another
                shape of adapter.
        """
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        _check_settings(Path(directory), self.settings())
        tensors = load_file(Path(directory) / WEIGHTS)
        _check_shapes(Path(directory), tensors, self.critic_tensors())
        head = "value_head."
        self.value_head.load_state_dict(
            {name.removeprefix(head): t for name, t in tensors.items() if name.startswith(head)}
        )
        adapter = {n.removeprefix("adapter."): t for n, t in tensors.items() if n.startswith("ad")}
        if adapter:
            set_peft_model_state_dict(self.model, adapter, adapter_name=CRITIC)


def _check_settings(folder: Path, expected: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise MissingFileError(
            f"critic_resume_path='{folder}' holds no {SETTINGS} and {WEIGHTS}. Give a folder "
            "Critic_<step> that PPO wrote beside a checkpoint."
        )
    found = read_settings(path)
    for name, value in expected.items():
        if found.get(name) != value:
            raise ModelError(
                f"critic_resume_path='{folder}' was saved with {name}={found.get(name)!r}, this "
                f"trainer has {name}={value!r}. Use the base model and the kind of critic it was "
                "trained with, or leave critic_resume_path out."
            )


def _check_shapes(folder: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    wrong = sorted(found.keys() ^ expected.keys())
    wrong += [n for n in found if n in expected and found[n].shape != expected[n].shape]
    if wrong:
        raise ModelError(
            f"critic_resume_path='{folder}' does not fit: {len(wrong)} tensors differ in name or "
            f"shape, e.g. '{wrong[0]}'. Give the lora_r and target_modules it was trained with."
        )
