"""A disk on which the n-th file operation of Python fails."""

import builtins
import errno
import io
import os
from collections.abc import Callable

import pytest

OPERATIONS = ["mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync", "pwrite"]
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Disk:
    """Counts the file operations that Python makes, and lets one of them fail.

    left: operations that still succeed; None: all.
    failed: the one that did not, as "<operation> <name of the file>".
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: int = errno.ENOSPC):
        self.left: int | None = None
        self.failed, self.error = "", error
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._counted("open", open))

    def _counted(self, name: str, real: Callable) -> Callable:
        def operation(*args, **kwargs):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            if self.left is not None and _writes(name, mode):
                self.left -= 1
                if self.left < 0:
                    self.left, self.failed = None, f"{name} {os.path.basename(str(args[0]))}"
                    named = [] if isinstance(args[0], int) else [str(args[0])]
                    raise OSError(self.error, os.strerror(self.error), *named)
            return real(*args, **kwargs)

        return operation


def _writes(name: str, mode: object) -> bool:
    if name != "open":
        return True
    return bool(mode & _WRITES if isinstance(mode, int) else set(str(mode)) & set("wax"))
