"""A server's process: started with its key out of sight, waited for, ended with its children."""

import contextlib
import ipaddress
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from main.errors import ConfigError, ModelError
from main.predictor.secret import Key
from main.predictor.vllm_engine import environment

KEY = "VLLM_API_KEY"
END_SECONDS = 30
PAUSE = 0.5  # seconds between two looks whether it answers
_NO_PROXY = urllib.request.ProxyHandler({})  # not the way to this machine
TELL = 20.0  # seconds between two lines that say that it is still starting


@contextlib.contextmanager
def running(line: Sequence[str], key: Key) -> Iterator[psutil.Popen]:
    """The process; afterwards it and its children are gone."""
    with environment():
        # in the environment, as a command line is for everybody to read
        own = {**os.environ, **({KEY: key.reveal()} if key else {})}
    if not key:
        own.pop(KEY, None)
    previous, process = _ends_with_sigterm(), None
    try:
        # a session of its own: Ctrl-C comes from here, once
        process = psutil.Popen(list(line), env=own, start_new_session=True)
        yield process
    finally:
        if process is not None:
            _end(process)
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _ends_with_sigterm() -> Any:
    """Let SIGTERM end the block as Ctrl-C does; signals are the main thread's alone."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        return signal.signal(signal.SIGTERM, interrupt)
    except ValueError:
        return None


def _end(process: psutil.Popen) -> None:
    """As with Ctrl-C, then harder; a second Ctrl-C does not wait."""
    running = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        running += process.children(recursive=True)
        process.send_signal(signal.SIGINT)
    with contextlib.suppress(KeyboardInterrupt):
        psutil.wait_procs(running, timeout=END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # its session, be its first process gone or not
    psutil.wait_procs(running, timeout=END_SECONDS)


def wait_for(url: str, process: psutil.Popen, seconds: float) -> None:
    begin = told = time.monotonic()
    while time.monotonic() - begin < seconds:
        if process.poll() is not None:
            raise ModelError(
                f"vllm serve ended with status {process.returncode} before it answered. Its log "
                "above says why; VLLM_LOGGING_LEVEL=INFO in the environment shows all of it."
            )
        try:
            with urllib.request.build_opener(_NO_PROXY).open(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(PAUSE)
        if time.monotonic() - told > TELL:
            told = time.monotonic()
            print(f"  still starting, {told - begin:.0f} s", flush=True)
    raise ModelError(
        f"vllm serve did not answer within {seconds:g} s: give a larger start_seconds, or look at "
        "its log above."
    )


def check_host(host: str, key: Key) -> None:
    if _is_loopback(host) or key:
        return
    raise ConfigError(
        f"host={host!r} can be reached by others: give api_key, or set {KEY} in the environment, "
        "and requests have to bring it; or leave host at 127.0.0.1."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def free_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"host={host!r}, port={port}: {error.strerror}. Give another port; 0 takes a free "
                "one."
            ) from error
        return int(probe.getsockname()[1])


def written(host: str) -> str:
    """The host as an address to ask has it."""
    asked = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{asked}]" if ":" in asked else asked
