"""Commands as a user types them: in this process, or in one of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from main.cli.entry import main

ROOT = Path(__file__).resolve().parent.parent


def run(capsys, *words: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `main-peft words...` in this process."""
    capsys.readouterr()
    status = main([str(word) for word in words])
    return (status, *capsys.readouterr())


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """`python -m main words...` there, which Ctrl-C reaches as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "main", *map(str, words)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
