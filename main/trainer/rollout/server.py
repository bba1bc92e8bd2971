"""Rollouts by a vLLM server that runs beside the training, as in two terminals.

    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 trl vllm-serve --model BASE --dtype DTYPE --enable-lora
    python train.py

DTYPE is the trainer's (`auto` makes float16 of float32). On a CPU VLLM_CPU_KVCACHE_SPACE=2 (GiB)
and --no-enable-chunked-prefill are needed too, see `main.predictor.vllm_engine`.

The server serves the base model and follows the policy in one of two ways: by its adapter, loaded
through the server's own endpoint (the command above; both sides see one file system, and several
training processes need as many places: --max-loras), or, without that endpoint and on GPUs, by
TRL's client, which sends it the merged weights.
"""

import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from main.errors import ConfigError, GenerationError, MissingExtraError
from main.models.merging import is_a_change_of_weights, merged_weights
from main.predictor.sampling import GenerationOptions
from main.system.masking import masked
from main.trainer.rollout.following import (
    PROBE_SEED,
    AdapterFolder,
    check_plain_lora,
    check_probe,
    probe_tokens,
    tolerance_of,
)
from main.trainer.rollout.sampler import Completion, Sampler, SamplingOptions, generation_options

ATTEMPTS = 3
FIRST_PAUSE = 1.0  # seconds; doubled after each attempt
CONCURRENCY = 64  # requests on their way at once
HOW_TO_START = (
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 trl vllm-serve --model BASE --dtype DTYPE --enable-lora "
    "--max-lora-rank RANK"
)


class Server(NamedTuple):
    """Where it listens and how long an answer may take.

    timeout: seconds for one attempt at one request.
    attempts: tries of a request that gets no answer, or an error of the server's own (5xx).
    """

    url: str
    timeout: float
    attempts: int = ATTEMPTS

    def __str__(self) -> str:
        return masked(self.url)

    def get(self, path: str) -> Any:
        """The response to GET, whatever its status below 500."""
        return self._send("get", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """The response to POST.

        Raises:
            GenerationError: no answer after all attempts, or the server refuses the request.
        """
        response = self._send("post", path, body)
        if response.status_code >= 400:
            raise GenerationError(
                f"the vLLM server at {self} refuses {path} with status "
                f"{response.status_code}: {response.text[:500]}"
            )
        return response

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        import requests

        problem: Any = None
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
            try:
                response = requests.request(
                    method, self.url + path, json=body, timeout=self.timeout
                )
            except requests.Timeout as error:
                problem = error
                found = f"did not answer within {self.timeout:g} s"
            except requests.RequestException as error:
                problem = error
                found = "cannot be reached"
            else:
                if response.status_code < 500:
                    return response
                found = f"fails with status {response.status_code}: {response.text[:200]}"
        raise GenerationError(
            f"the vLLM server at {self} {found} ({path}, {self.attempts} attempts). See its "
            f"terminal; start it with `{HOW_TO_START}` and go on from the last checkpoint with "
            "resume_from_checkpoint='auto'."
        ) from problem


class ServerSampler(Sampler):
    """Samples with a running vLLM server; one that does not follow the policy is an error.

    With top_k, top_p or min_p the log-probabilities are those of the kept tokens, renormalised:
    vLLM reports no others.

    Args:
        policy: the PEFT model, as in `BaseTrainer.policy`.
        stop_ids: tokens that end a completion.
        pad_id: not needed here; samplers are made alike.
        url: where the server listens.
        timeout: seconds that one answer may take; there are three attempts.
        tolerance: see `check_probe`; None = by the policy's dtype.

    Raises:
        ConfigError: the policy trains more than LoRA, or the server cannot follow it.
        GenerationError: the server does not answer.
    """

    def __init__(
        self,
        policy: Any,
        options: SamplingOptions,
        stop_ids: Collection[int],
        pad_id: int,
        url: str = "http://127.0.0.1:8000",
        timeout: float = 240.0,
        tolerance: float | None = None,
    ):
        check_plain_lora(policy)
        self.policy, self.options, self.stop_ids = policy, options, sorted(stop_ids)
        self.tolerance = tolerance_of(policy) if tolerance is None else tolerance
        self.server = Server(url.rstrip("/"), timeout)
        self.base = self.server.get("/v1/models").json()["data"][0]["id"]
        self.model = self.base
        self.folder = AdapterFolder(policy)
        self.weights = None if self._takes_adapters() else _weights_client(self.server.url, policy)

    def sample(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        greedy: bool = False,
        limits: Sequence[int] | None = None,
    ) -> list[Completion]:
        if not prompts:
            return []
        with self.folder.following() as changed:
            if changed:
                self._switch()
                self._check(prompts[0])
        settings = generation_options(self.options, greedy)
        most = self.options.limits(prompts, limits)
        with ThreadPoolExecutor(min(CONCURRENCY, len(prompts))) as pool:
            tasks = [
                pool.submit(self._complete, ids, seed, settings, limit)
                for ids, seed, limit in zip(prompts, seeds, most, strict=True)
            ]
            try:
                return [task.result() for task in tasks]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _complete(
        self, prompt: list[int], seed: int, settings: GenerationOptions, limit: int
    ) -> Completion:
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": limit,
            "temperature": settings.temperature if settings.samples else 0.0,
            "top_p": 1.0 if settings.top_p is None else settings.top_p,
            "top_k": max(settings.top_k or 0, 0),
            "min_p": settings.min_p or 0.0,
            "repetition_penalty": settings.repetition_penalty,
            "seed": seed % 2**63,
            "stop_token_ids": self.stop_ids,
            "ignore_eos": True,  # end tokens are those of `stop_ids` and no others
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
        }
        choice = self.server.post("/v1/completions", body).json()["choices"][0]
        logprobs = [float(value) for value in choice["logprobs"]["token_logprobs"]]
        ids = list(choice["token_ids"])
        if len(logprobs) != len(ids):
            raise GenerationError(
                f"the vLLM server at {self.server} returned {len(ids)} tokens and "
                f"{len(logprobs)} log-probabilities for one completion."
            )
        return Completion(ids, logprobs, ended=choice["finish_reason"] == "stop")

    def _check(self, prompt: list[int]) -> None:
        temperature = self.options.temperature
        settings = GenerationOptions(temperature=temperature, do_sample=True)
        probe = self._complete(prompt, PROBE_SEED, settings, probe_tokens(self.options))
        check_probe(self.policy, list(prompt), probe, temperature, self.tolerance)

    def _takes_adapters(self) -> bool:
        """Whether the server loads adapters while it runs: the endpoint takes POST only then."""
        return self.server.get("/v1/load_lora_adapter").status_code == 405

    def _switch(self) -> None:
        """Serve the adapter written last instead of the one before."""
        if self.weights is not None:
            self.weights.send(self.policy)
            return
        former = self.model
        name = f"policy-{os.getpid()}-{id(self)}-{self.folder.number}"
        body = {"lora_name": name, "lora_path": str(self.folder.path)}
        self.server.post("/v1/load_lora_adapter", body)
        self.model = name
        if former != self.base:
            self._unload(self.server, former)

    @staticmethod
    def _unload(server: Server, name: str) -> None:
        server.post("/v1/unload_lora_adapter", {"lora_name": name})

    def close(self) -> None:
        """Take the adapter from the server, if it still answers, and remove its files."""
        self.folder.close()
        if self.weights is not None:
            self.weights.close()
        elif self.model != self.base:
            name, self.model = self.model, self.base
            try:
                self._unload(self.server._replace(attempts=1), name)
            except GenerationError:
                return  # it ended first: nothing is left to take back


class _Weights:
    """Sends merged weights through TRL's client of `trl vllm-serve`."""

    def __init__(self, url: str, policy: Any):
        from trl.generation.vllm_client import VLLMClient

        self.client = VLLMClient(base_url=url)
        self.client.init_communicator(device=policy.device)

    def send(self, policy: Any) -> None:
        """The layers that carry an adapter; the rest of the base never changes."""
        with self.client.weight_update():
            for name, tensor in merged_weights(policy):
                self.client.update_named_param(name, tensor)
        self.client.reset_prefix_cache()

    def close(self) -> None:
        self.client.close_communicator()


def _weights_client(url: str, policy: Any) -> _Weights:
    where = masked(url)
    if policy.device.type != "cuda":
        raise ConfigError(
            f"the vLLM server at {where} does not load adapters while it runs, and merged weights "
            f"can be sent between GPUs only (the policy is on '{policy.device}'). Start it with "
            f"`{HOW_TO_START}`."
        )
    if not is_a_change_of_weights(policy):
        raise ConfigError(
            f"the vLLM server at {where} takes merged weights, and this adapter is more than a "
            f"change of weights (see main.models.merging). Start it with `{HOW_TO_START}`."
        )
    try:
        return _Weights(url, policy)
    except ImportError as error:
        raise MissingExtraError("trl", "trl", "sending weights to a vLLM server") from error
    except RuntimeError as error:
        raise ConfigError(
            f"the vLLM server at {where} cannot follow the policy: {error} Or start it with "
            f"`{HOW_TO_START}`."
        ) from error
