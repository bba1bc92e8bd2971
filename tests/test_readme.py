"""Every code block of the README runs as printed, on a tiny model and the first rows of the data.

The blocks run in a folder of their own in which `models/SmolLM2-135M-Instruct` is the tiny random
model and each data file has eight rows; the Chinese README has the same blocks.
"""

import builtins
import io
import re
import shlex
import tokenize
from pathlib import Path
from typing import Any

import pytest
import small_project
from conftest import ROOT

from main import errors

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Commands of the README that are not run here, and why.
NOT_RUN = {
    "make quickstart": "ten minutes of real training; tried by hand from a fresh clone",
    "make test": "it is what runs this test",
    "make install-vllm": "changes the environment that the tests run in",
    "accelerate launch": "see test_lora.py, test_fsdp.py, test_deepspeed.py, test_cli_train.py",
    "examples/grpo.py --use_vllm": "needs vLLM; see test_rollout_vllm.py, test_rollout_server.py",
    "trl vllm-serve": "a server; started in the tests marked vllm where vLLM is installed",
    "main.utils.serve": "a server that does not end; see test_serve.py",
    "tensorboard": "a server that does not end",
    "main-peft chat": "a dialogue; see test_cli_commands.py",
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


def without_comments(language: str, code: str) -> list[Any]:
    """The code's tokens: what has to be the same in both languages."""
    if language != "python":
        return [line.partition(" #")[0].split() for line in code.splitlines()]
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE)
    return [token.string for token in tokens if token.type not in skipped]


@pytest.fixture
def sandbox(tmp_path, tiny_model_path, encoder_path) -> Path:
    return small_project.make(tmp_path, tiny_model_path, encoder_path)


def test_both_readmes_show_the_same_code():
    english, chinese = blocks("README.md"), blocks("README.zh.md")
    assert len(english) > 8
    assert [without_comments(*block) for block in english] == [
        without_comments(*block) for block in chinese
    ]


def test_every_error_has_its_line_and_every_line_its_error():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^\| `(\w+)` \(`(\w+)`\) \|", page, re.MULTILINE))
    classes = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.MainError)
    }
    assert set(lines) == set(classes) - {"MainError"}
    for name, standard in lines.items():
        assert issubclass(classes[name], getattr(builtins, standard))


@pytest.mark.long
def test_every_block_of_the_readme_runs(sandbox):
    found = blocks("README.md")
    python = [code for language, code in found if language == "python"]
    (sandbox / "blocks").write_text("\0".join(python), encoding="utf-8")
    (sandbox / "runner.py").write_text(RUNNER, encoding="utf-8")
    printed = small_project.run(["runner.py", "blocks"], sandbox)
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
        start = {"python": [], "main-peft": ["-m", "main"]}
        assert words[0] in start, f"{line!r} is neither run nor listed in NOT_RUN"
        small_project.run([*start[words[0]], *words[1:]], sandbox)
