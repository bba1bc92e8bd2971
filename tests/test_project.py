"""Rules that this project sets itself, where nothing else would notice that one is broken."""

import ast
import re

from conftest import ROOT

TESTS = {path.stem: ast.parse(path.read_text("utf-8")) for path in (ROOT / "tests").glob("*.py")}


def imported(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_no_test_file_and_no_helper_imports_a_test_file():
    for name, tree in TESTS.items():
        assert not [other for other in imported(tree) if other.startswith("test_")], name


def test_the_folder_of_a_test_is_made_in_one_place():
    places = [
        name
        for name, tree in TESTS.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "own_folder"
    ]
    assert places == ["conftest"]


# docs/architecture.md draws them in this order; a package imports what stands before it.
LAYERS = (
    ("errors", "types"),
    ("options",),
    ("system",),
    ("vision", "chatglm"),
    ("models",),
    ("dialogue",),
    ("loaders",),
    ("predictor",),
    ("evaluation",),
    ("trainer",),
    ("utils",),
    ("cli",),
)


def test_imports_run_one_way():
    height = {name: level for level, names in enumerate(LAYERS) for name in names}
    files = [path for path in (ROOT / "main").rglob("*.py") if path.parent != ROOT / "main"]
    files += [ROOT / "main" / f"{name}.py" for name in ("errors", "types", "options")]
    assert len(files) > 100
    for path in files:
        here = path.relative_to(ROOT / "main").parts[0].removesuffix(".py")
        for module in imported(ast.parse(path.read_text("utf-8"))):
            parts = module.split(".")
            if parts[0] == "main" and len(parts) > 1 and parts[1] != here:
                assert height[parts[1]] < height[here], f"{path}: {module}"


def test_the_page_on_architecture_names_what_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:main|tests|docs|examples)/[\w/]+(?:\.\w+|/))`", page)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    packages = {path.parent.name for path in (ROOT / "main").glob("*/__init__.py")}
    wings = {path.parent.name for path in (ROOT / "main" / "trainer").glob("*/__init__.py")}
    assert [name for name in packages | wings if f"{name}/" not in page] == []
