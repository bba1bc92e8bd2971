"""A vLLM server as a second terminal would start it: ready or failed in bounded time, then gone."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from launchers import free_port

START_SECONDS = 400
END_SECONDS = 60
TINY = ["--dtype", "float32", "--kv-cache-memory-bytes", 2**28]


@contextmanager
def served(command: Sequence[Any], log: Path, **environment: str) -> Iterator[str]:
    """The address of a server; afterwards none of its processes is left.

    Args:
        command: the name of a script beside this Python, and its arguments without the address.
        log: file for what the server writes.
        environment: variables beside those of this process.
    """
    port = free_port()
    script, *arguments = command
    line = [Path(sys.executable).parent / script, *arguments, "--host", "127.0.0.1", "--port", port]
    with log.open("wb") as output:
        server = psutil.Popen(
            [str(part) for part in line],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )
    started: list[psutil.Process] = []
    try:
        _wait_for(f"http://127.0.0.1:{port}", server, log)
        started = server.children(recursive=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        _, alive = psutil.wait_procs([server, *started], timeout=END_SECONDS)
        for process in alive:
            process.kill()
    assert not alive, f"still running after {END_SECONDS} s: {alive}"


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=5).ok:
                return
        except requests.RequestException:
            time.sleep(1)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")
