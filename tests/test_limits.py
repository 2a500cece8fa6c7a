"""Limits that keep the package readable: sizes of files and classes, and how much of it a launch imports.

`ruff` checks statements and branches of functions; these are the limits that it does not know.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent

MAX_LINES, MAX_ATTRIBUTES = 400, 12
"""Lines of a file, and attributes that an ``__init__`` sets."""

MAX_MODULES, MAX_CLOSURE = 319, 60
"""Modules of the package, and of those that `orchestrator.cli.launch` imports, directly or not."""

MIN_LINES = 3
"""Modules of at most so many lines, which only mark a package, do not count."""


def _modules() -> dict[str, Path]:
    """Return the modules of the package by name."""
    paths = sorted((ROOT / "orchestrator").rglob("*.py"))
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    return {name.removesuffix(".__init__"): path for name, path in zip(names, paths, strict=True)}


def _num_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


MODULES = _modules()
COUNTED = {name for name, path in MODULES.items() if _num_lines(path) > MIN_LINES}


@cache
def _trees() -> dict[str, ast.Module]:
    """Return the parsed modules by name: only the worker of these tests needs them."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _classes() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield each class with the name of its module."""
    for name, tree in _trees().items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def _imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module imports, also inside functions, and its packages."""
    parts = module.split(".")
    yield from (".".join(parts[:number]) for number in range(1, len(parts)))
    for node in ast.walk(_trees()[module]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def closure(module: str) -> set[str]:
    """Return a module with all that it imports, directly or not, by any import statement."""
    found: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in MODULES and name not in found:
            found.add(name)
            todo += _imports(name)
    return found & COUNTED


def _attributes(method: ast.FunctionDef) -> set[str]:
    """Return the attributes of its object that a method sets."""
    return {
        node.attr
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


def test_no_file_of_the_package_or_its_tests_is_too_long():
    found = {}
    for path in (
        path for name in ("orchestrator", "tests", "benchmarks") for path in (ROOT / name).rglob("*.py")
    ):
        name, number = path.relative_to(ROOT).as_posix(), _num_lines(path)
        if number > MAX_LINES:
            found[name] = number
    assert found == {}


def test_the_package_has_few_modules_and_a_launch_imports_a_third_of_them():
    assert len(COUNTED) <= MAX_MODULES
    assert len(closure("orchestrator.cli.launch")) <= MAX_CLOSURE, sorted(closure("orchestrator.cli.launch"))


def test_no_two_files_of_tests_have_one_name():
    # pytest imports them by that name alone, and could not run them together.
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, number in names.items() if number > 1] == []


def test_no_class_sets_many_attributes():
    found = {}
    for module, node in _classes():
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "__init__":
                number = len(_attributes(method))
                if number > MAX_ATTRIBUTES:
                    found[f"{module}.{node.name}"] = number
    assert found == {}


def test_no_two_classes_have_one_name():
    places: defaultdict[str, list[str]] = defaultdict(list)
    for module, node in _classes():
        if not node.name.startswith("_"):
            places[node.name].append(module)
    assert {name: modules for name, modules in places.items() if len(modules) > 1} == {}


def test_the_fork_server_imports_the_stages_before_it_forks():
    # The imports look unused, so a tool that removes such lines would slow every attempt by seconds.
    names = ("base", "evaluate", "prepare", "rehearse", "tokenizer", "train")
    assert {f"orchestrator.sft.{name}" for name in names} <= set(_imports("orchestrator.sft.preload"))
