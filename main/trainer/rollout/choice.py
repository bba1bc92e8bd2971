"""Which sampler draws the completions: the one place where it is chosen."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from main.options import Options, below, not_positive
from main.trainer.rollout.sampler import HFSampler, Sampler, SamplingOptions

VLLMMode = Literal["server", "colocate"]


_SERVER = ("vllm_server_base_url", "vllm_server_timeout")
_ENGINE = ("vllm_gpu_memory_utilization",)


@dataclass(kw_only=True)
class SamplerOptions(SamplingOptions, Options):
    """How completions are drawn, and by what.

    use_vllm: draw with vLLM instead of transformers.
    vllm_mode: 'server' = a running `trl vllm-serve` or vLLM server, as in two terminals;
        'colocate' = an engine in this process.
    vllm_server_base_url: where the server listens.
    vllm_server_timeout: seconds to wait for the server.
    vllm_gpu_memory_utilization: share of the device's memory for an engine in this process.
    sampling_batch_size: most completions that grow at once (transformers only).
    """

    use_vllm: bool = False
    vllm_mode: VLLMMode = "server"
    vllm_server_base_url: str = "http://127.0.0.1:8000"
    vllm_server_timeout: float = 240.0
    vllm_gpu_memory_utilization: float = 0.3
    sampling_batch_size: int = 64

    def problems(self) -> list[str]:
        found = []
        if self.max_completion_length < 1:
            found.append(f"max_completion_length={self.max_completion_length} must be >= 1.")
        if self.temperature <= 0:
            found.append(
                f"temperature={self.temperature} must be > 0: greedy completions of a prompt are "
                "all the same, and nothing could be learnt from them."
            )
        if not 0 < self.top_p <= 1:
            found.append(f"top_p={self.top_p} must be above 0 and at most 1.")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            found.append(f"min_p={self.min_p} must be between 0 and 1.")
        if self.repetition_penalty <= 0:
            found.append(f"repetition_penalty={self.repetition_penalty} must be > 0; 1 is none.")
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            share = self.vllm_gpu_memory_utilization
            found.append(f"vllm_gpu_memory_utilization={share} must be above 0 and at most 1.")
        found += not_positive(self, ["vllm_server_timeout"])
        return found + below(self, {"sampling_batch_size": 1})

    def without_effect(self) -> dict[str, str]:
        if not self.use_vllm:
            found = dict.fromkeys(("vllm_mode", *_SERVER, *_ENGINE), "use_vllm=False")
        elif self.vllm_mode == "server":
            found = dict.fromkeys(("sampling_batch_size", *_ENGINE), "vllm_mode='server'")
        else:
            found = dict.fromkeys(("sampling_batch_size", *_SERVER), "vllm_mode='colocate'")
        return super().without_effect() | found


def make_sampler(
    options: SamplerOptions,
    policy: Any,
    stop_ids: Collection[int],
    pad_id: int,
    base: str | Path,
    longest: int,
) -> Sampler:
    """The sampler that `options` ask for.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        base: folder of the base model, for an engine that loads it itself.
        longest: most tokens of a prompt and its completion together; what such an engine has to
            have room for, instead of the model's whole context.

    Raises:
        ConfigError: the sampler cannot follow this policy.
        MissingExtraError: vLLM is not installed.
        GenerationError: the server does not answer.
    """
    if not options.use_vllm:
        return HFSampler(policy, options, stop_ids, pad_id, options.sampling_batch_size)
    if options.vllm_mode == "server":
        from main.trainer.rollout.server import ServerSampler

        url, timeout = options.vllm_server_base_url, options.vllm_server_timeout
        return ServerSampler(policy, options, stop_ids, pad_id, url, timeout)
    from main.trainer.rollout.colocated import VLLMSampler

    return VLLMSampler(
        policy,
        options,
        stop_ids,
        pad_id,
        base,
        gpu_memory_utilization=options.vllm_gpu_memory_utilization,
        max_model_len=longest,
    )
