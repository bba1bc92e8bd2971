"""Rollouts by a vLLM engine that this process starts.

The engine keeps its own copy of the base weights: vLLM's public interface has no way to share the
trainer's. After each change it follows the policy through a folder in memory: by the adapter alone,
as a new LoRA request, or by the weights with the adapter merged in. On a CPU vLLM's LoRA layers
take more than twice as long as plain ones, so there it merges.
"""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from main.models.adapters import ADAPTER
from main.models.merging import is_a_change_of_weights
from main.predictor.decoding import Decoding
from main.predictor.sampling import GenerationOptions
from main.predictor.vllm_adapters import largest_rank, room_for
from main.predictor.vllm_engine import ALIKE, Engine, Request
from main.predictor.vllm_params import sampling_params, take
from main.trainer.rollout.following import (
    PROBE_SEED,
    AdapterFolder,
    check_plain_lora,
    check_probe,
    probe_tokens,
    tolerance_of,
)
from main.trainer.rollout.merged import merged_size, save_merged
from main.trainer.rollout.sampler import (
    Completion,
    Sampler,
    SamplingOptions,
    completion_of,
    decoder_rows,
    generation_options,
)


class VLLMSampler(Sampler):
    """Samples with vLLM; a sampler that does not follow the policy is an error, not a bad run.

    With top_k, top_p or min_p the log-probabilities are those of the kept tokens, renormalised:
    vLLM reports no others.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        stop_ids: tokens that end a completion.
        pad_id: not needed here; samplers are made alike.
        base: folder of the base model.
        tolerance: see `check_probe`; None = by the policy's dtype.
        merged: follow by merged weights instead of the adapter; None = on a CPU, if the base can
            be merged with.
        sleep: give the accelerator's memory back between two calls (GPUs only).
        gpu_memory_utilization: share of a GPU's memory for the engine; a CPU's is measured out by
            `main.predictor.vllm_engine`.
        engine: more of vLLM's engine arguments, e.g. max_model_len.

    Raises:
        ConfigError: the policy trains more than LoRA, or vLLM refuses an engine argument.
        MissingExtraError: vLLM is not installed.
    """

    def __init__(
        self,
        policy: Any,
        options: SamplingOptions,
        stop_ids: Collection[int],
        pad_id: int,
        base: str | os.PathLike[str],
        tolerance: float | None = None,
        merged: bool | None = None,
        sleep: bool = False,
        gpu_memory_utilization: float | None = None,
        **engine: Any,
    ):
        check_plain_lora(policy)
        self.policy, self.options, self.stop_ids = policy, options, frozenset(stop_ids)
        self.tolerance = tolerance_of(policy) if tolerance is None else tolerance
        if merged is None:
            merged = not torch.cuda.is_available() and is_a_change_of_weights(policy)
        self.merged, self.sleep = merged, sleep
        if gpu_memory_utilization is not None and torch.cuda.is_available():
            engine["gpu_memory_utilization"] = gpu_memory_utilization
        self.engine = Engine(_engine_arguments(policy, base, merged, sleep) | engine)
        self.folder = (
            AdapterFolder(policy, save_merged, merged_size(policy))
            if merged
            else AdapterFolder(policy)
        )
        self.adapter: Any = None
        self.asleep = False

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        greedy: bool = False,
        limits: Sequence[int] | None = None,
    ) -> list[Completion]:
        if not prompts:
            return []
        if self.asleep:
            self.engine.wake()
            self.asleep = False
        with self.folder.following() as changed:
            rows = decoder_rows(prompts, seeds, self.options.limits(prompts, limits))
            self._draw(rows, greedy, changed)
        if self.sleep:
            self.engine.sleep()
            self.asleep = True
        return [completion_of(row) for row in rows]

    def _draw(self, rows: list[Decoding], greedy: bool, changed: bool) -> None:
        if changed:
            self._switch()
        settings = generation_options(self.options, greedy)
        requests = [self._request(row, settings) for row in rows]
        first, tokens = rows[0].prompt_ids, probe_tokens(self.options)
        probes = decoder_rows([first], [PROBE_SEED], [tokens]) if changed else []
        requests += [self._request(probe, self._probe_settings()) for probe in probes]
        for row, output in zip([*rows, *probes], self.engine.run(requests), strict=True):
            take(row, output, self.stop_ids)
        for probe in probes:
            self._check(probe)

    def _switch(self) -> None:
        """Serve what was written last instead of what was before."""
        if self.merged:
            self.engine.load_weights(self.folder.path)
            self.folder.remove()
            return
        from vllm.lora.request import LoRARequest

        former, number = self.adapter, self.folder.number
        if former is not None:
            self.engine.remove_adapter(former)
        # the name is part of the key under which vLLM keeps the prompts that it has seen
        self.adapter = LoRARequest(f"policy-{number}", number, str(self.folder.path))
        self.engine.add_adapter(self.adapter)

    def _request(self, row: Decoding, settings: GenerationOptions) -> Request:
        params = sampling_params(row, settings, self.stop_ids, logprobs=True)
        return Request(row.prompt_ids, params, self.adapter)

    def _probe_settings(self) -> GenerationOptions:
        return GenerationOptions(temperature=self.options.temperature, do_sample=True)

    def _check(self, probe: Decoding) -> None:
        completion, temperature = completion_of(probe), self.options.temperature
        check_probe(self.policy, probe.prompt_ids, completion, temperature, self.tolerance)

    def close(self) -> None:
        self.engine.close()
        self.folder.close()


def _engine_arguments(
    policy: Any, base: str | os.PathLike[str], merged: bool, sleep: bool
) -> dict[str, Any]:
    return {
        "model": str(Path(base)),
        "dtype": str(policy.get_base_model().dtype).removeprefix("torch."),
        **ALIKE,
        **({} if merged else _room_for_adapter(policy)),
        **({"enable_sleep_mode": True} if sleep else {}),
    }


def _room_for_adapter(policy: Any) -> dict[str, Any]:
    rank = largest_rank(policy.peft_config[ADAPTER])
    if getattr(policy, "initial_adapter", None):
        rank *= 2  # PiSSA is saved as plain LoRA of twice the rank
    return {"enable_lora": True, "max_lora_rank": room_for(rank)}
