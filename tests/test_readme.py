"""Every code block of the README runs as printed, on a tiny model and the first rows of the data.

The blocks run in a folder of their own in which `models/SmolLM2-135M-Instruct` is the tiny random
model and each data file has eight rows; the Chinese README has the same blocks.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest
from conftest import ROOT

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Commands of the README that are not run here, and why.
NOT_RUN = {
    "make quickstart": "ten minutes of real training; tried by hand from a fresh clone",
    "make test": "it is what runs this test",
    "make install-vllm": "changes the environment that the tests run in",
    "accelerate launch": "two processes train in test_lora.py",
    "trl vllm-serve": "a server; started in the tests marked vllm where vLLM is installed",
    "tensorboard": "a server that does not end",
    "main.utils.plot": "needs the plot extra; see test_plot.py",
    "examples/rag": "needs the rag extra; see test_rag.py",
}
SUBSTITUTES = {"Llama_150": "Llama_2"}  # eight rows make fewer steps

RUNNER = """
import sys
for number, code in enumerate(open(sys.argv[1], encoding="utf-8").read().split("\\0")):
    print("BLOCK", number, flush=True)
    exec(compile(code, f"README block {number}", "exec"), {"__name__": "__main__"})
"""


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block, in order."""
    return FENCE.findall((ROOT / name).read_text(encoding="utf-8"))


def without_comments(language: str, code: str) -> list[str]:
    """The code's tokens: what has to be the same in both languages."""
    if language != "python":
        return [line.partition(" #")[0].split() for line in code.splitlines()]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    return [token.string for token in tokens if token.type not in skipped]


@pytest.fixture
def sandbox(tmp_path, tiny_model_path, encoder_path, monkeypatch) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/SmolLM2-135M-Instruct").symlink_to(tiny_model_path)
    (tmp_path / "models/all-MiniLM-L6-v2").symlink_to(encoder_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "data").mkdir()
    for file in (ROOT / "data").iterdir():
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)[:8]
            (tmp_path / "data" / file.name).write_text("".join(lines), encoding="utf-8")
        elif file.name.startswith("ticket_"):
            rows = json.loads(file.read_text(encoding="utf-8"))[:8]
            (tmp_path / "data" / file.name).write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "data/present.json").write_text((ROOT / "data/present.json").read_text("utf-8"))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return done.stdout


def test_both_readmes_show_the_same_code():
    english, chinese = blocks("README.md"), blocks("README.zh.md")
    assert len(english) > 8
    assert [without_comments(*block) for block in english] == [
        without_comments(*block) for block in chinese
    ]


@pytest.mark.slow
def test_every_block_of_the_readme_runs(sandbox):
    found = blocks("README.md")
    python = [code for language, code in found if language == "python"]
    (sandbox / "blocks").write_text("\0".join(python), encoding="utf-8")
    (sandbox / "runner.py").write_text(RUNNER, encoding="utf-8")
    printed = run([sys.executable, "runner.py", "blocks"], sandbox)
    assert printed.count("BLOCK") == len(python) >= 5
    commands = [
        line for language, code in found if language == "bash" for line in code.splitlines()
    ]
    for line in commands:
        command = line.partition(" #")[0].strip()
        if not command or any(known in command for known in NOT_RUN):
            continue
        for name, substitute in SUBSTITUTES.items():
            command = command.replace(name, substitute)
        words = shlex.split(command)
        assert words[0] == "python", f"{line!r} is neither run nor listed in NOT_RUN"
        run([sys.executable, *words[1:]], sandbox)
