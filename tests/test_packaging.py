"""What an installation gets: the version once, the licence, the types, every import declared."""

import ast
import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from setuptools import build_meta

import main

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {Requirement(line).name: Requirement(line) for line in PROJECT["dependencies"]}
EXTRAS = {
    extra: {Requirement(line).name for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
# Installed by the Makefile, where they exist for the machine; their tests are skipped elsewhere.
BY_THE_MAKEFILE = {"vllm", "deepspeed"}
# Module -> distribution, where more than one distribution has the module.
OWNERS = {"google": "protobuf", "vllm": "vllm"}


def imports(folder: str) -> Iterator[tuple[str, bool, str]]:
    """(distribution, whether importing the module needs it, where) of the imports in `folder`."""
    owners = importlib.metadata.packages_distributions()
    ours = {path.stem for area in ("tests", "examples", "benchmarks") for path in of(area)}
    for path in of(folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            else:
                continue
            for name in {name.partition(".")[0] for name in names}:
                if name in sys.stdlib_module_names or name in ours | {"main"}:
                    continue
                owner = OWNERS.get(name) or owners.get(name, [name])[0]
                where = f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
                yield canonicalize_name(owner), node in tree.body, where


def of(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def test_what_the_package_imports_is_a_dependency_or_where_imported_late_in_an_extra():
    users = {name for extra, names in EXTRAS.items() if extra != "dev" for name in names}
    for owner, early, where in imports("main"):
        assert owner in (CORE if early else CORE.keys() | users), where


@pytest.mark.parametrize("folder", ["examples", "benchmarks", "tests", "scripts"])
def test_what_stands_beside_the_package_imports_what_make_install_brings(folder):
    at_hand = CORE.keys() | EXTRAS["dev"] | BY_THE_MAKEFILE
    for owner, _, where in imports(folder):
        assert owner in at_hand, where


def test_every_dependency_is_imported():
    """Or, as PEFT's and transformers' own, used by name: tensorboard by torch."""
    used = {owner for owner, _, _ in imports("main")} | {"tensorboard"}
    assert {canonicalize_name(name) for name in CORE} <= used


def test_the_lower_bounds_admit_torch_2_11_and_transformers_5_17():
    assert CORE["torch"].specifier.contains("2.11.0")
    assert CORE["transformers"].specifier.contains("5.17.0")


def test_a_built_wheel_has_the_version_the_licence_and_the_types(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "main"):
        (source / name).symlink_to(ROOT / name)
    monkeypatch.chdir(source)
    name = build_meta.build_wheel(str(tmp_path))
    with ZipFile(tmp_path / name) as wheel:
        files = wheel.namelist()
        (path,) = [file for file in files if file.endswith(".dist-info/METADATA")]
        fields = Parser().parsestr(wheel.read(path).decode("utf-8"))
    assert fields["Version"] == main.__version__
    assert fields["License-Expression"] == "Apache-2.0"
    assert {"main/utils/report/page.css", "main/utils/report/page.js"} <= set(files)
    assert "main/py.typed" in files and any(file.endswith("/LICENSE") for file in files)
    assert {file.partition("/")[0] for file in files} == {"main", path.partition("/")[0]}


def test_the_changes_tell_of_the_version_that_the_package_has():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {main.__version__}\n" in changes
