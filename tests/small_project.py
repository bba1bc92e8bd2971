"""A folder like the project's for what a user types there: a tiny model, eight rows a data file."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = 8


def make(folder: Path, model: Path, encoder: Path) -> Path:
    """Fill the folder; `models/SmolLM2-135M-Instruct` there is the given tiny model."""
    for name, target in (("SmolLM2-135M-Instruct", model), ("all-MiniLM-L6-v2", encoder)):
        (folder / "models").mkdir(exist_ok=True)
        (folder / "models" / name).symlink_to(target)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "data").mkdir()
    for file in (ROOT / "data").iterdir():
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if file.suffix == ".jsonl":
            text = "".join(text.splitlines(keepends=True)[:ROWS])
        elif file.name.startswith("ticket_"):
            text = json.dumps(json.loads(text)[:ROWS])
        if text:
            (folder / "data" / file.name).write_text(text, encoding="utf-8")
    return folder


def run(words: list[str], folder: Path, timeout: float = 900) -> str:
    """What `python words...` prints there; an error fails the test and is shown."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout
