"""A vLLM server for a base model and adapters by name, which answers as the predictors here do.

python -m main.utils.serve MODEL [--peft_path ADAPTER ...] [-- further arguments of vllm serve]

It says its address and how to ask it; Ctrl-C ends it and its processes.
"""

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from main.errors import EngineDiedError
from main.options import documentation, parse
from main.predictor.secret import key_of
from main.predictor.vllm_engine import load_vllm
from main.utils.serve_command import Plan, command, named, plan_of, raise_ours
from main.utils.serve_process import KEY, check_host, free_port, running, wait_for, written


@dataclass
class ServeOptions:
    """Keyword arguments of `serve`.

    model: folder of the base model, or its name on the hub.
    peft_path: an adapter's folder, several of them, 'name=folder', or a mapping of names to
        folders. An adapter is asked by its name, its folder's unless it is given.
    host: the address to listen at. port: 0 = one that is free.
    api_key: what requests must bring; None = of VLLM_API_KEY in the environment, if it is set. An
        address that others can reach needs one. vLLM asks for it below /v1 alone.
    dtype: 'auto' = as `main.models.load_model` would choose.
    trust_remote_code: run Python code that the model brings along.
    arguments: further arguments of `vllm serve`, such as ["--max-model-len", "4096"].
    start_seconds: how long it may take until it answers.
    """

    model: str | Path
    peft_path: Any = None
    host: str = "127.0.0.1"
    port: int = 8000
    dtype: str = "auto"
    trust_remote_code: bool = False
    arguments: Sequence[str] = ()
    start_seconds: float = 1800.0

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if not 0 <= self.port < 65536:
            found.append(f"port={self.port} must be between 0 and 65535.")
        if self.start_seconds <= 0:
            found.append(f"start_seconds={self.start_seconds} must be above 0.")
        return found


class Server:
    """A server that answers; `serving` makes and ends it.

    url: its address, for `main.predictor.openai.Predictor(name, base_url=url)`.
    plan: what it serves.
    """

    def __init__(self, url: str, plan: Plan, process: psutil.Popen, needs_key: bool):
        self.url, self.plan, self.process, self.needs_key = url, plan, process, needs_key

    @property
    def names(self) -> list[str]:
        """By which its models are asked: adapters first, then the base."""
        return [*(one.name for one in self.plan.adapters), self.plan.name]

    def how_to_ask(self) -> str:
        """What there is, and a first question in Python and in a shell."""
        name, plain = self.names[0], self._plain_text(self.names[0])
        path = "completions" if plain else "chat/completions"
        asked = (
            '"prompt": "Hello"' if plain else '"messages": [{"role": "user", "content": "Hello"}]'
        )
        header = ' \\\n    -H "Authorization: Bearer $OPENAI_API_KEY"' if self.needs_key else ""
        lines = [f"vLLM answers at {self.url}; Ctrl-C ends it. Its models:"]
        lines += [f"  {one.name}  (adapter {one.folder})" for one in self.plan.adapters]
        key = ", with the key as OPENAI_API_KEY in the environment" if self.needs_key else ""
        lines += [f"  {self.plan.name}  (base {self.plan.base})", f"In Python{key}:"]
        lines += [
            "  from main.predictor.openai import Predictor",
            f'  print(Predictor("{name}", base_url="{self.url}")("Hello"))',
            "In a shell:",
            f"  curl {self.url}/{path} -H 'Content-Type: application/json'{header} \\",
            f'    -d \'{{"model": "{name}", "temperature": 0, "max_tokens": 64, {asked}}}\'',
        ]
        return "\n".join(lines)

    def wait(self) -> None:
        """Until it ends by itself.

        Raises:
            EngineDiedError: it did.
        """
        code = self.process.wait()
        raise EngineDiedError(f"vllm serve ended with status {code}. Its log above says why.")

    def _plain_text(self, name: str) -> bool:
        return any(one.name == name and one.record.plain_text for one in self.plan.adapters)


@contextlib.contextmanager
def serving(
    model: str | os.PathLike[str],
    peft_path: Any = None,
    *,
    api_key: str | None = None,
    **options: Any,
) -> Iterator[Server]:
    """A server in a process of its own; it has answered when the block begins.

    Args:
        options: see `ServeOptions`.

    Raises:
        ConfigError: arguments that cannot work, a port that is taken, an open address without key,
            adapters that need different servers.
        ModelError: a model or adapter that vLLM cannot load, or a server that does not start.
        MissingFileError, MissingExtraError: no such model; vLLM is not installed.
    """
    given = {"model": str(model), **options} | (
        {} if peft_path is None else {"peft_path": peft_path}
    )
    settings = parse(ServeOptions, given, "serve()")
    key = key_of(api_key, KEY)
    check_host(settings.host, key)
    raise_ours(settings.arguments)
    port = free_port(settings.host, settings.port)
    load_vllm()
    adapters = named(settings.peft_path)
    plan = plan_of(str(settings.model), adapters, settings.trust_remote_code)
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        line = command(plan, Path(folder), settings.host, port, settings.dtype, settings.arguments)
        with running(line, key) as process:
            url = f"http://{written(settings.host)}:{port}"
            wait_for(f"{url}/health", process, settings.start_seconds)
            yield Server(f"{url}/v1", plan, process, bool(key))


def serve(
    model: str | os.PathLike[str],
    peft_path: Any = None,
    *,
    api_key: str | None = None,
    **options: Any,
) -> None:
    """Serve until Ctrl-C, and say how to ask; arguments and errors as of `serving`."""
    print("vLLM starts, which takes a minute or more ...", flush=True)
    try:
        with serving(model, peft_path, api_key=api_key, **options) as server:
            print(server.how_to_ask(), flush=True)
            server.wait()
    except KeyboardInterrupt:
        print("The server has ended.", flush=True)


def _arguments(given: Sequence[str] | None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog="python -m main.utils.serve",
        description=(__doc__ or "").splitlines()[0],
        epilog=documentation(ServeOptions),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of the base model, or its name on the hub")
    parser.add_argument("--peft_path", nargs="+", help="adapters, or name=folder of each")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--dtype")
    parser.add_argument("--trust_remote_code", action="store_true", default=None)
    parser.add_argument("--start_seconds", type=float)
    return {
        name: value for name, value in vars(parser.parse_args(given)).items() if value is not None
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; a key comes from VLLM_API_KEY in the environment."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, further = given, []
    if "--" in given:
        own, further = given[: given.index("--")], given[given.index("--") + 1 :]
    options = _arguments(own)
    serve(options.pop("model"), options.pop("peft_path", None), **options, arguments=further)
    return 0


if __name__ == "__main__":
    sys.exit(main())
