"""A disk on which the n-th file operation of Python fails."""

import builtins
import errno
import io
import os
from collections.abc import Callable

import pytest

OPERATIONS = ["mkdir", "rename", "replace", "unlink", "rmdir", "open", "fsync"]


class Disk:
    """Counts the file operations that Python makes, and lets one of them fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.left: int | None = None  # operations that still succeed; None: all
        for name in OPERATIONS:
            monkeypatch.setattr(os, name, self._counted(getattr(os, name), name != "open"))
        for module in (builtins, io):
            monkeypatch.setattr(module, "open", self._counted(open, False))

    def _counted(self, real: Callable, always: bool) -> Callable:
        def operation(*args, **kwargs):
            mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
            writes = always or (isinstance(mode, str) and set(mode) & set("wax"))
            if self.left is not None and writes:
                self.left -= 1
                if self.left < 0:
                    self.left = None
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return real(*args, **kwargs)

        return operation
