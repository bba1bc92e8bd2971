"""Every class of options in the package."""

import dataclasses
import importlib
import pkgutil
from typing import Any

import main


def options_classes() -> set[Any]:
    names = [module.name for module in pkgutil.walk_packages(main.__path__, "main.")]
    modules = [importlib.import_module(name) for name in names]
    return {
        kind
        for module in modules
        for name, kind in vars(module).items()
        if name.endswith(("Options", "Setup")) and dataclasses.is_dataclass(kind)
    }
