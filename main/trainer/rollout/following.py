"""How a sampler outside the policy follows it: by files, and by a probe that they arrived.

A sampler that still serves the base model or an older adapter trains on completions of another
policy, and nothing else in the run would show it. So after every change of the adapter the sampler
draws one probe, and its log-probabilities have to be the policy's own.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from main.errors import ConfigError, GenerationError
from main.models import save_adapter
from main.models.adapters import ADAPTER, adapter_tensors
from main.trainer.policy.logprobs import LogprobModel, scoring
from main.trainer.rollout.sampler import Completion, SamplingOptions

MEMORY = Path("/dev/shm")
PROBE_TOKENS = 8
PROBE_SEED = 20_260_101


class AdapterFolder:
    """What the sampler reads, on a file system in memory: a new folder after each change.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        write: puts what the sampler reads into a folder: the adapter, or weights with it merged in.
        size: bytes of that, where it may be more than the memory holds.
    """

    def __init__(
        self, policy: Any, write: Callable[[Any, Path], None] = save_adapter, size: int = 0
    ):
        self.policy, self.write = policy, write
        in_memory = MEMORY.is_dir() and os.access(MEMORY, os.W_OK)
        in_memory = in_memory and shutil.disk_usage(MEMORY).free > 2 * size
        self.root = Path(tempfile.mkdtemp(prefix="adapter-", dir=MEMORY if in_memory else None))
        self._remove = weakref.finalize(self, shutil.rmtree, self.root, ignore_errors=True)
        self.number = 0
        self._saved: dict[str, torch.Tensor] = {}

    @property
    def path(self) -> Path:
        """The folder written last."""
        return self.root / str(self.number)

    @contextmanager
    def following(self) -> Iterator[bool]:
        """Write the policy if it changed; True then. A block that fails has to send it again."""
        changed = self.update()
        try:
            yield changed
        except BaseException:
            if changed:
                self.forget()
            raise

    def update(self) -> bool:
        """Write if the adapter is not the one of the last time; True if it was written."""
        tensors = {name: t.detach() for name, t in adapter_tensors(self.policy).items()}
        if tensors.keys() == self._saved.keys() and all(
            torch.equal(tensor, self._saved[name]) for name, tensor in tensors.items()
        ):
            return False
        self.remove()
        self.number += 1
        self.write(self.policy, self.path)
        self._saved = {name: tensor.clone() for name, tensor in tensors.items()}
        return True

    def remove(self) -> None:
        """Free the memory of what was written last; the sampler has read all of it."""
        shutil.rmtree(self.path, ignore_errors=True)

    def forget(self) -> None:
        """Write again at the next `update`, whatever it was."""
        self._saved = {}

    def close(self) -> None:
        """Remove the files."""
        self._remove()


def check_plain_lora(policy: Any) -> None:
    """vLLM applies LoRA on linear layers and nothing else.

    Raises:
        ConfigError: the policy trains more than that.
    """
    config = policy.peft_config[ADAPTER]
    more = {
        "use_dora=True": getattr(config, "use_dora", False),
        "modules_to_save": getattr(config, "modules_to_save", None),
    }
    found = [name for name, given in more.items() if given]
    if found:
        raise ConfigError(
            f"vLLM cannot follow an adapter with {' and '.join(found)}. Train without it, or draw "
            "completions with transformers (use_vllm=False)."
        )


def probe_tokens(options: SamplingOptions) -> int:
    """Tokens of a probe: no more than a completion has, lest it exceed the sampler's context."""
    return min(PROBE_TOKENS, options.max_completion_length)


def tolerance_of(policy: Any) -> float:
    """Mean difference of log-probabilities, nats, that two correct programs may show."""
    return 1e-2 if policy.get_base_model().dtype == torch.float32 else 0.15


def check_probe(
    policy: Any, prompt: list[int], probe: Completion, temperature: float, tolerance: float
) -> float:
    """The mean difference between the sampler's log-probabilities and the policy's.

    Args:
        probe: drawn by the sampler for `prompt` without top_k, top_p, min_p and penalties.

    Raises:
        GenerationError: the sampler serves other weights, or reports other log-probabilities.
    """
    ids = torch.tensor([prompt + probe.ids], device=policy.device)
    mask = torch.arange(ids.shape[1], device=policy.device)[None] >= len(prompt)
    with scoring(policy):
        expected = LogprobModel(policy)(ids, mask, temperature=temperature).logprobs
    given = torch.tensor(probe.sampling_logprobs, device=policy.device)
    difference = float((given - expected).abs().mean())
    if not difference <= tolerance:
        dtype = str(policy.get_base_model().dtype).removeprefix("torch.")
        raise GenerationError(
            f"the sampler does not follow the policy: the log-probabilities of a probe differ by "
            f"{difference:.3g} nats a token on average, and {tolerance:.3g} is the most that "
            "rounding explains. It serves other weights (an older adapter, another base, a model "
            "that an adapter was already merged into), computes in another dtype than the policy "
            f"(a server needs --dtype {dtype}), or its log-probabilities are not those of the "
            "sampling temperature (vllm serve needs --logprobs-mode processed_logprobs)."
        )
    return difference
