"""A disk on which the n-th file operation of Python fails, or kills the process."""

import builtins
import errno
import io
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

OPERATIONS = ["mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync", "pwrite",
              "truncate", "ftruncate"]  # fmt: skip
KILL = -1  # in the place of an error's number
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# What Python itself reports of them, whoever calls; of fsync and pwrite it reports nothing.
_REPORTED = {"mkdir": "os.mkdir", "rename": "os.rename", "replace": "os.rename",
             "unlink": "os.remove", "rmdir": "os.rmdir", "open": "open",
             "truncate": "os.truncate", "ftruncate": "os.truncate"}  # fmt: skip
_MAIN = str(Path(__file__).resolve().parent.parent / "main")


class Made(NamedTuple):
    """An operation, and the line of main/ that asked for it."""

    operation: str
    place: str


class Disk:
    """Counts the file operations that Python makes, and lets one of them fail.

    left: operations that still succeed; None: all.
    failed: the one that did not, as "<operation> <name of the file>".
    made: all of them, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int = errno.ENOSPC):
        self.left: int | None = None
        self.failed, self.error = "", error
        self.made: list[Made] = []
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        counted = self._counted("open", open)  # one for both: `Path.open` asks `io`
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", counted)

    def _counted(self, name: str, real: Callable) -> Callable:
        def operation(*args, **kwargs):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            if _writes(name, mode) and not (name == "open" and isinstance(args[0], int)):
                self.made.append(Made(name, _place()))
                if self.left is not None:
                    self.left -= 1
                if self.left is not None and self.left < 0:
                    self._fail(name, args[0])
            return real(*args, **kwargs)

        return operation

    def _fail(self, name: str, target: object) -> None:
        self.left, self.failed = None, f"{name} {os.path.basename(str(target))}"
        if self.error == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        named = [] if isinstance(target, int) else [str(target)]
        raise OSError(self.error, os.strerror(self.error), *named)

    def reported(self) -> Counter:
        """How often Python reports each of them, if all went through this disk."""
        return Counter(_REPORTED[m.operation] for m in self.made if m.operation in _REPORTED)


def _writes(name: str, mode: object) -> bool:
    if name != "open":
        return True
    return bool(mode & _WRITES if isinstance(mode, int) else set(str(mode)) & set("wax+"))


def _place() -> str:
    frame = sys._getframe(2)
    while frame.f_back is not None and not frame.f_code.co_filename.startswith(_MAIN):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.removeprefix(_MAIN)}:{frame.f_lineno}"


_heard: Counter | None = None
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link",
            "os.symlink", "os.chmod", "os.chown", "os.utime", "os.mkfifo", "os.mknod")  # fmt: skip


def _hear(event: str, arguments: tuple) -> None:
    if _heard is None:
        return
    if event in _CHANGES:
        _heard[event] += 1
    elif event == "open":
        _, mode, flags = arguments
        # Python's own `open` reports its mode, and os.open its flags.
        writes = _writes("open", mode) if mode is not None else bool(flags & _WRITES)
        _heard["open"] += writes


@contextmanager
def listening() -> Iterator[Counter]:
    """Counts what Python's audit hooks hear of files that are changed, by whomever."""
    global _heard
    if not getattr(sys, "_listens_to_files", False):
        sys.addaudithook(_hear)
        sys._listens_to_files = True  # type: ignore[attr-defined]
    found: Counter[str] = Counter()
    _heard = found
    try:
        yield found
    finally:
        _heard = None
