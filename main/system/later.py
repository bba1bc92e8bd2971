"""A package's names whose modules are loaded when one is first asked for: they load torch."""

from collections.abc import Callable
from importlib import import_module
from typing import Any


def later(package: str, **modules: str) -> Callable[[str], Any]:
    """A package's `__getattr__` (PEP 562).

    Args:
        modules: name -> the module that has it.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(modules[name]), name)

    return load
