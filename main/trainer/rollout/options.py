"""What trainers accept about the drawing of completions, whatever draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from main.options import Options, below, not_positive

VLLMMode = Literal["server", "colocate"]
_SERVER = ("vllm_server_base_url", "vllm_server_timeout")
_ENGINE = ("vllm_gpu_memory_utilization",)


@dataclass
class SamplingOptions:
    """How completions are drawn.

    max_completion_length: most tokens of a completion, the end token included; with tools or an
        environment of all that follows the prompt, what these add included.
    temperature, top_p, top_k, min_p, repetition_penalty: see `GenerationOptions`.
    """

    max_completion_length: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def limits(self, prompts: Sequence[Any], limits: Sequence[int] | None) -> Sequence[int]:
        """Most tokens of each completion: those given, or the same for all."""
        return [self.max_completion_length] * len(prompts) if limits is None else limits


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
