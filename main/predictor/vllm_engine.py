"""A vLLM engine behind ordinary calls: its event loop runs in a thread of its own.

Shared by the predictor and the sampler of rollouts. Only vLLM's public asynchronous interface is
used. The engine computes in processes of its own, which end with `close()` or with this process.
"""

import asyncio
import atexit
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil

from main.errors import (
    ConfigError,
    EngineDiedError,
    GenerationError,
    MainError,
    MissingExtraError,
    ModelError,
)
from main.models.families import original_of
from main.predictor.background import Background
from main.system.processes import without_main

STARTING = threading.Lock()  # one engine at a time, so that its processes are known
CPU_CACHE_BYTES = 4 * 2**30  # most memory for keys and values on a CPU unless the caller says
SHUTDOWN_SECONDS = 30
ALIKE = {  # arguments of every engine here
    "generation_config": "vllm",  # the model's own sampling values are not applied
    "logprobs_mode": "processed_logprobs",
    "disable_log_stats": True,
    "use_tqdm_on_load": False,
}
CHANGED = {"VLLM_LOGGING_LEVEL", "CUDA_VISIBLE_DEVICES"}  # variables of the engine's processes
RANKS = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}
RANKS |= {"MASTER_ADDR", "MASTER_PORT"}


class Request(NamedTuple):
    """One prompt for the engine.

    prompt_ids: token ids.
    params: vLLM's `SamplingParams`.
    adapter: vLLM's `LoRARequest`, or None for the base model.
    images: see `main.predictor.vllm_pixels.image_input`.
    """

    prompt_ids: list[int]
    params: Any
    adapter: Any = None
    images: Mapping[str, Any] = MappingProxyType({})

    @property
    def engine_input(self) -> dict[str, Any]:
        """vLLM's processed input: there is nothing left to render."""
        kind = "multimodal" if self.images else "token"
        return {"type": kind, "prompt_token_ids": self.prompt_ids, **self.images}


def load_vllm() -> Any:
    """The package vllm.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with environment():
            import vllm
    except ImportError as error:
        purpose = "main.predictor.vllm (`make install-vllm` installs its CPU build)"
        raise MissingExtraError("vllm", "vllm", purpose) from error
    return vllm


def engine_options() -> set[str]:
    """Names of everything that an engine may be told, from vLLM itself."""
    return set(load_vllm().AsyncEngineArgs.__dataclass_fields__)


class Engine:
    """Runs requests; may be called from several threads at once.

    Args:
        arguments: keyword arguments of vLLM's `AsyncEngineArgs`.

    Raises:
        ConfigError: vLLM refuses the arguments.
        ModelError: the engine does not start.
    """

    def __init__(self, arguments: Mapping[str, Any]):
        vllm = load_vllm()
        refuse_original(arguments["model"])
        self._background = Background("vllm")
        self._numbers = itertools.count()
        self._parts: dict[str, Any] = {}  # filled below, emptied by closing
        self._close = weakref.finalize(self, _shutdown, self._parts, self._background)
        try:
            with STARTING, environment(), without_main():
                before = set(psutil.Process().children(recursive=True))
                self._parts["llm"] = self._wait(_start(vllm, dict(arguments)))
                self._parts["processes"] = _new_processes(before)
            # last registered, first run: before vLLM's own end takes the engine from its listener
            atexit.register(self._close)
        except BaseException:
            self._close()
            raise

    @property
    def _llm(self) -> Any:
        self._check_open()
        return self._parts["llm"]

    def _check_open(self) -> None:
        if "llm" not in self._parts:
            raise EngineDiedError("the vLLM engine is closed: make a new one.")

    @property
    def context(self) -> int:
        """Tokens of prompt and completion together."""
        return int(self._llm.model_config.max_model_len)

    def run(self, requests: Sequence[Request]) -> list[Any]:
        """The finished vLLM output of each request, in order.

        Raises:
            GenerationError: vLLM refuses a request; EngineDiedError: its engine died.
        """
        self._check_open()
        last: dict[int, Any] = {}
        self._wait(self._all(requests, last.__setitem__))
        return [last[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Any]]]:
        """Yield what came since the last item: (index of the request, vLLM output).

        Closing the generator aborts the requests, and returns when that is done.
        """
        self._check_open()
        return self._background.stream(
            lambda put: _clear_errors(self._all(requests, lambda *item: put(item)))
        )

    def add_adapter(self, adapter: Any) -> None:
        """Load a LoRA adapter now, so that a bad one is refused before a request uses it.

        Raises:
            ModelError: vLLM cannot use it.
        """
        try:
            self._wait(self._llm.add_lora(adapter))
        except GenerationError as error:
            raise ModelError(f"vLLM cannot use adapter '{adapter.lora_path}': {error}") from error

    def remove_adapter(self, adapter: Any) -> None:
        """Forget an adapter; its place is free for another one."""
        self._wait(self._llm.remove_lora(adapter.lora_int_id))

    def load_weights(self, folder: Path) -> None:
        """Replace the weights in a checkpoint's folder; those not in it stay. No request may run.

        Raises:
            GenerationError: vLLM cannot read them.
        """
        self._wait(self._llm.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)}))
        self._wait(self._llm.reset_prefix_cache())

    def sleep(self) -> None:
        """Give the accelerator's memory back until `wake`; needs enable_sleep_mode=True."""
        self._wait(self._llm.sleep())

    def wake(self) -> None:
        """Take the memory again."""
        self._wait(self._llm.wake_up())

    def unfinished(self) -> int:
        """Requests that the engine is still working on."""
        return int(self._llm.get_num_unfinished_requests())

    def close(self) -> None:
        """End the engine's processes; calling it twice is fine."""
        self._close()
        atexit.unregister(self._close)

    def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._background.wait(_clear_errors(coroutine))

    async def _all(self, requests: Sequence[Request], put: Callable[[int, Any], None]) -> None:
        """Run all requests at once; the first that fails ends the others."""
        async with asyncio.TaskGroup() as group:
            for index, request in enumerate(requests):
                group.create_task(self._one(index, request, put))

    async def _one(self, index: int, request: Request, put: Callable[[int, Any], None]) -> None:
        name = str(next(self._numbers))
        outputs = self._llm.generate(
            request.engine_input, request.params, name, lora_request=request.adapter
        )
        async for output in outputs:
            put(index, output)


def refuse_original(model: str) -> None:
    original = original_of(Path(model))
    if original:
        raise ModelError(
            f"'{model}' is in the form of its original code, whose tokenizer vLLM cannot load. "
            "Write it once in transformers' form and give that folder: "
            f"{original.convert.format(folder=model)}"
        )


async def _start(vllm: Any, arguments: dict[str, Any]) -> Any:
    try:
        options = vllm.AsyncEngineArgs(**for_cpu(arguments))
        config = options.create_engine_config()
    except ValueError as error:
        raise ConfigError(f"vLLM refuses these options: {_first_lines(error)}") from error
    try:
        return vllm.AsyncLLMEngine.from_vllm_config(
            config, disable_log_stats=bool(arguments.get("disable_log_stats"))
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(
            f"the vLLM engine for '{arguments['model']}' did not start: {_first_lines(error)} "
            "Its log above says why; VLLM_LOGGING_LEVEL=INFO in the environment shows all of it."
        ) from error


def for_cpu(arguments: dict[str, Any]) -> dict[str, Any]:
    """What vLLM needs on a CPU and does not choose by itself; the caller's word comes last.

    It would take nine tenths of all memory for keys and values. And a prompt that it computes in
    pieces, of a request with a seed, kills it: it winds the generator back by an offset, which
    torch's generator for CPUs does not have.
    """
    import torch

    if torch.cuda.is_available():
        return arguments
    own: dict[str, Any] = {"enable_chunked_prefill": False}
    said = arguments.keys() & {"kv_cache_memory_bytes", "gpu_memory_utilization"}
    if not said and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        free = psutil.virtual_memory().available
        own["kv_cache_memory_bytes"] = min(CPU_CACHE_BYTES, free // 4)
    return own | arguments


async def _clear_errors(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What vLLM raises, as one of our errors."""
    try:
        return await coroutine
    except (MainError, asyncio.CancelledError):
        raise
    except Exception as error:
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, MainError):
            raise error from error.__cause__
        cause = error.__cause__ or error
        if type(error).__name__ == "EngineDeadError":
            raise EngineDiedError(f"the vLLM engine died: {_first_lines(cause)}") from error
        raise GenerationError(f"vLLM refuses the request: {_first_lines(cause)}") from error


def _first_lines(error: BaseException) -> str:
    """The message on one line, without the pointers that pydantic adds to it."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = [line for line in lines if line and not line.startswith("For further information")]
    return " ".join(kept[:4]) or type(error).__name__


def _new_processes(before: "set[psutil.Process]") -> "list[psutil.Process]":
    """The engine's processes; Python's own tracker of shared memory lives as long as this one."""
    started = set(psutil.Process().children(recursive=True)) - before
    return [p for p in started if not any("resource_tracker" in part for part in p.cmdline())]


def _shutdown(parts: dict[str, Any], background: Background) -> None:
    # first, or what listens to the engine would report that it died
    background.cancel_all(SHUTDOWN_SECONDS)
    if "llm" in parts:
        parts.pop("llm").shutdown(timeout=SHUTDOWN_SECONDS)
    _, alive = psutil.wait_procs(parts.pop("processes", []), timeout=SHUTDOWN_SECONDS)
    for process in alive:
        process.kill()
    background.stop(SHUTDOWN_SECONDS)


@contextmanager
def environment() -> Iterator[None]:
    """The environment that the engine's processes inherit; afterwards ours is as it was.

    They are no ranks of this process's group, and run on its device. Hundreds of lines of log a
    start are left out unless the caller's environment asks for them.
    """
    before = dict(os.environ)
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.update(own_device(before))
    for name in before:
        if name in RANKS or name.startswith("TORCHELASTIC"):
            del os.environ[name]
    try:
        yield
    finally:
        for name in set(os.environ) | set(before):
            if name in before:
                os.environ[name] = before[name]
            elif name in CHANGED:
                del os.environ[name]


def own_device(environment: Mapping[str, str]) -> dict[str, str]:
    """Of several GPUs that a launcher shares out by LOCAL_RANK, the one of this process.

    >>> own_device({"LOCAL_RANK": "1", "CUDA_VISIBLE_DEVICES": "4,6"})
    {'CUDA_VISIBLE_DEVICES': '6'}
    """
    rank = environment.get("LOCAL_RANK")
    if rank is None:
        return {}
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else []
    if visible is not None and int(rank) >= len(devices):
        return {}
    return {"CUDA_VISIBLE_DEVICES": devices[int(rank)] if devices else rank}
