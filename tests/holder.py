"""A lock that another process holds."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import sys, time
from pathlib import Path
from main.system.locks import take
take(Path(sys.argv[1]), "another program")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def held(path: Path, seconds: float = 600) -> Iterator[subprocess.Popen]:
    """By another process, which is killed in the end."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), str(seconds)],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    try:
        assert other.stdout and other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.wait()
