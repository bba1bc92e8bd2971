"""Which sampler draws the completions: the one place where it is chosen."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from main.trainer.rollout.options import SamplerOptions
from main.trainer.rollout.sampler import HFSampler, Sampler


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
