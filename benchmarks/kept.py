"""A result and where it comes from: commit, machine, versions, command."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def keep(script: str, result: Mapping[str, Any], packages: Iterable[str]) -> None:
    """Write benchmarks/results/<script>.json, its origin first; print it without the rounds."""
    content = {"origin": origin(packages), **result}
    path = RESULTS / f"{Path(script).stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({name: v for name, v in content.items() if name != "rounds"}, indent=2))


def origin(packages: Iterable[str]) -> dict[str, Any]:
    """Of a figure that is made now."""
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": {name: found for name in packages if (found := installed(name))},
        "python": platform.python_version(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
    }


def commit() -> str:
    """The commit that is measured, with a '+' where files differ from it."""
    at = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "main", "benchmarks/*.py")
    return f"{at}{'+' if changed else ''}" if at else "unknown"


def is_stale(commit: str) -> bool:
    """Whether the package has changed since; what git does not know is stale."""
    known = commit.rstrip("+")
    if not known or _git("cat-file", "-t", known) != "commit":
        return True
    return bool(_git("diff", "--name-only", known, "--", "main"))


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def installed(name: str) -> str:
    """The version of a package; '' where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
