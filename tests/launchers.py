"""A script run by several real processes, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STARTERS = {
    # With `--cpu`, or with nothing where there is no GPU, accelerate starts one process, whatever
    # `--num_processes` says.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
                   "--mixed_precision", "no", "--dynamo_backend", "no"],
    "fsdp": ["accelerate.commands.launch", "--use_fsdp", "--fsdp_version", "2", "--num_machines",
             "1", "--mixed_precision", "no", "--dynamo_backend", "no"],
    # --standalone: a restart would meet what the first attempt left at a fixed --master_port.
    "torchrun": ["torch.distributed.run"],
}  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(
    script: str | Path,
    *arguments: str,
    processes: int = 2,
    by: str = "accelerate",
    options: tuple[str, ...] = (),
) -> list[str]:
    start = [sys.executable, "-m", *STARTERS[by]]
    if by == "torchrun":
        start += ["--standalone", "--nproc_per_node", str(processes)]
    else:
        start += ["--num_processes", str(processes), "--main_process_port", str(free_port())]
    return [*start, *options, str(script), *arguments]


def environment() -> dict[str, str]:
    changes = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | changes


def launch(
    script: str | Path, *arguments: str, timeout: float = 300, **how
) -> subprocess.CompletedProcess[str]:
    """`accelerate launch script arguments` on the CPU; the output of all processes together."""
    return subprocess.run(
        command(script, *arguments, **how),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def kill_at(
    folder: str, command: list[str], env: Mapping[str, str] | None = None, timeout: float = 300
) -> None:
    """Start the command, and kill -9 it as soon as it has made the folder."""
    process = subprocess.Popen(command, env=environment() if env is None else env)
    deadline = time.monotonic() + timeout
    while not Path(folder).is_dir() and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Path(folder).is_dir(), f"no {folder} within {timeout} s"
