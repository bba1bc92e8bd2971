"""Chat templates are tried before they are used, once, in a process of its own with limits.

A template is a program. jinja2's sandbox keeps it from files and from Python, and lets it loop for
ever or take all memory. What passed is noted in the cache's folder, by digest.
"""

import hashlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

from main.dialogue import trial
from main.errors import ModelError
from main.system.notes import keep, kept

log = logging.getLogger(__name__)

NOTES = "templates"
VERSION = 1  # of the trial; raised when a template that passed may fail
SECONDS = 3  # of processor time
MEGABYTES = 512
PATIENCE = 120  # seconds that a busy machine may take for it
PAUSE = 0.1  # seconds between two looks at its memory

_passed: set[str] = set()


class Outcome(NamedTuple):
    """What became of a trial.

    problem: what is wrong with the template; '' where nothing is.
    untried: why the template could not be tried; '' where it was.
    """

    problem: str = ""
    untried: str = ""


def forget() -> None:
    """Try again: for tests."""
    _passed.clear()


def check_sources(sources: Iterable[str]) -> None:
    """Let pass the templates that keep within the limits of time, memory and length.

    Where no process can be started a template is used untried, which is said once.

    Raises:
        ModelError: another one.
    """
    for source in sources:
        if source not in _passed:
            _check(source)
            _passed.add(source)


def _check(source: str) -> None:
    key = _key(source)
    if kept(NOTES, key):
        return
    outcome = _try(source)
    if outcome.problem:
        raise ModelError(
            f"The chat template {outcome.problem}: it was tried on small dialogues, in a process "
            "of its own, and is not used. Give the tokenizer the template of the model's own "
            "release (tokenizer.chat_template)."
        )
    if outcome.untried:
        _warn(outcome.untried)
    else:
        keep(NOTES, key, True)


@cache
def _warn(cause: str) -> None:
    log.warning(
        "Chat templates are used untried, as no process can be started to try them (%s): one that "
        "loops for ever would not be stopped.",
        cause,
    )


def _key(source: str) -> str:
    import jinja2

    parts = [str(VERSION), jinja2.__version__, sys.version, source]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _try(source: str) -> Outcome:
    if not sys.executable or getattr(sys, "frozen", False):
        return Outcome(untried="this program has no Python to start")
    command = [sys.executable, "-I", "-S", trial.__file__, str(SECONDS), str(MEGABYTES)]
    environment = {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    try:
        with subprocess.Popen(
            [*command, *_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        ) as process:
            try:
                return _outcome(process, source.encode("utf-8", "surrogatepass"))
            finally:
                process.kill()
    except OSError as error:
        return Outcome(untried=str(error))


def _outcome(process: subprocess.Popen, source: bytes) -> Outcome:
    told, problem = _watch(process, source)
    lines = told.decode("utf-8", "replace").splitlines()
    if not problem and lines[:1] != [trial.BEGUN]:
        return Outcome(untried=f"it ended with status {process.returncode}")
    if problem or lines[-1:] == [trial.ENDED]:
        return Outcome(problem or "\n".join(lines[1:-1]).strip())
    return Outcome(f"takes more than {SECONDS} s of processor time, or ends Python")


def _watch(process: subprocess.Popen, source: bytes) -> tuple[bytes, str]:
    """(what it wrote, why it was stopped); its own limits are not everywhere kept."""
    end = time.monotonic() + PATIENCE
    given: bytes | None = source
    while True:
        try:
            return process.communicate(given, timeout=PAUSE)[0], ""
        except subprocess.TimeoutExpired:
            given = None
        if _megabytes(process.pid) > MEGABYTES:
            return b"", "takes more memory than it may"
        if time.monotonic() > end:
            return b"", f"is not through with it after {PATIENCE} s"


def _megabytes(pid: int) -> float:
    import psutil

    try:
        return psutil.Process(pid).memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


def _folders() -> list[str]:
    """Where jinja2 and what it needs lie."""
    import jinja2
    import markupsafe

    files = (str(module.__file__) for module in (jinja2, markupsafe))
    return list(dict.fromkeys(str(Path(file).parent.parent) for file in files))
