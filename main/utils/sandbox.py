"""Runs Python that a model wrote, in a process of its own with limits.

The limits: wall time and processor time, memory, the size of written files, no network, an empty
environment, an own working folder that is deleted, and where the kernel lends namespaces the end of
every process that was started. What it does not do: hide files that the user may read. Whoever lets
strangers' models write code runs the trainer in a container.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from functools import cache
from typing import NamedTuple

from main.errors import ConfigError

# Runs in the new process, isolated from the user's site-packages: limits first, then the code.
_RUNNER = """
import ctypes, os, resource, sys
seconds, megabytes, network = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
spaces = 0x10000000 | 0x20000000 | (0 if network else 0x40000000)  # user, processes, network
if ctypes.CDLL(None, use_errno=True).unshare(spaces):
    if not network:
        os._exit(97)
else:
    child = os.fork()  # the first process of its own: with it all others end
    if child:
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
for kind, limit in (
    (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, megabytes * 2**20),
    (resource.RLIMIT_FSIZE, 16 * 2**20), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64),
):
    resource.setrlimit(kind, (limit, limit))

def run():
    token, _, source = sys.stdin.read().partition("\\n")
    code, _, tests = source.partition("\\0")
    # What it prints must neither fill memory here nor pass for the sign at the end.
    out = os.dup(1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    scope = {"__name__": "__main__"}
    # Both at first: the code may put other functions in the place of Python's own.
    parts = [compile(text, "answer", "exec") for text in (code, tests)]
    execute, write = exec, os.write
    for part in parts:
        execute(part, scope)
    write(out, token.encode())

run()
"""


class Limits(NamedTuple):
    """Seconds and megabytes that a run may take, and whether it may use the network."""

    seconds: int = 5
    megabytes: int = 512
    network: bool = False


def passes(code: str, tests: str, limits: Limits) -> bool:
    """Whether the code, and the tests after it in the same module, run to their end.

    A code that leaves early (`sys.exit(0)`) has not passed: the end is told by a word of this call.
    That stops accidents and short cuts, not a code that searches the frames of its caller for it.
    Python's standard library is there, and no package.
    """
    if "\0" in code:
        return False
    token = secrets.token_hex(16)
    arguments = [str(limits.seconds), str(limits.megabytes), str(limits.network)]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUNNER, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"HOME": folder, "PATH": ""},
            start_new_session=True,
            text=True,
            errors="backslashreplace",
        )
        try:
            told, _ = process.communicate(f"{token}\n{code}\0{tests}", timeout=limits.seconds)
        except subprocess.TimeoutExpired:
            told = ""
        finally:
            _end(process)
    return told == token


def check(limits: Limits) -> None:
    """Raises ConfigError: limits that cannot work, or that this system cannot keep."""
    if limits.seconds < 1 or limits.megabytes < 64:
        raise ConfigError(
            f"seconds={limits.seconds} and megabytes={limits.megabytes} must be at least 1 and 64."
        )
    if sys.platform != "linux":
        raise ConfigError("code can be run with limits on Linux only.")
    if not limits.network and not _can_be_apart():
        raise ConfigError(
            "this kernel lends no network namespace, so that code could use the network. Run in a "
            "container without one and pass allow_network=True, or allow user namespaces."
        )


@cache
def _can_be_apart() -> bool:
    return passes("", "", Limits(seconds=20))


def _end(process: subprocess.Popen) -> None:
    """Ends the session that was started here, whatever is left of it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()
