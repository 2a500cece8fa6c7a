"""Each rule of the design has code that holds it, and a test that fails without it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("invariants", ROOT / "docs" / "invariants.py")
assert _spec is not None and _spec.loader is not None
invariants = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(invariants)
ROWS = invariants.rows()
COPIED = ("orchestrator", "tests", "conf", "sweeps", "schema", "docs", "slurm")


def file_of(row: dict[str, Any]) -> Path:
    return Path(row["code"].partition(":")[0].replace(".", "/") + ".py")


def rules_of(title: str) -> list[int]:
    """The numbers of the rules in a section of the design."""
    text = (ROOT / "docs" / "design.md").read_text()
    section = re.split(r"(?m)^## ", text.partition(f"\n## {title}\n")[2])[0]
    return [int(number) for number in re.findall(r"(?m)^(\d+)\. ", section)]


def test_each_rule_of_the_design_has_a_row() -> None:
    for section, title in invariants.SECTIONS.items():
        assert sorted({row["rule"] for row in ROWS if row["section"] == section}) == rules_of(title)
    assert len(rules_of("The store protocol")) >= 19


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']} {row['rule']}: {row['what']}")
def test_code_test_and_defect_of_a_row_exist(row: dict[str, Any]) -> None:
    module, _, name = row["code"].partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    path, _, test = row["test"].partition("::")
    tree = ast.parse((ROOT / path).read_text())
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    text = (ROOT / file_of(row)).read_text()
    assert text.count(row["old"]) == 1, "the code has changed: make the defect as it would be now"
    ast.parse(text.replace(row["old"], row["new"]))


def test_the_page_is_made_of_the_table() -> None:
    assert invariants.PAGE.read_text() == invariants.page(), "python docs/invariants.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, whose code may be changed."""
    folder = tmp_path_factory.mktemp("project")
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(project: Path, test: str) -> int:
    """Run one test of the copy, with the copy's code; return pytest's exit code."""
    command = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)
    assert (
        str(project)
        in subprocess.run(
            [sys.executable, "-c", "import orchestrator; print(orchestrator.__file__)"],
            cwd=project,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    return done.returncode


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['section']} {row['rule']}: {row['what']}")
def test_with_the_defect_the_test_fails_and_without_it_it_passes(row: dict[str, Any], project: Path) -> None:
    file = project / file_of(row)
    text = file.read_text()
    assert run(project, row["test"]) == 0
    file.write_text(text.replace(row["old"], row["new"]))
    try:
        assert run(project, row["test"]) == 1
    finally:
        file.write_text(text)


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))


@pytest.mark.usefixtures("docs")
def test_the_page_on_mutants_is_made_of_what_was_measured() -> None:
    mutants = importlib.import_module("mutants")
    assert mutants.PAGE.read_text() == mutants.page(), "python docs/mutants.py --page"


@pytest.mark.usefixtures("docs")
def test_a_change_changes_what_the_one_function_returns_wherever_it_is_referred_to(tmp_path: Path) -> None:
    mutating = importlib.import_module("mutating")
    file, source = (
        tmp_path / "sums.py",
        "class Sum:\n    def of(self, a, b=2):\n        return self._p(a) * b\n",
    )
    file.write_text(source := f"{source}\n    def _p(self, a):\n        return a + 1\n")
    module = types.ModuleType("sums")
    module.__file__ = str(file)
    exec(compile(source, str(file), "exec"), vars(module))  # noqa: S102
    kept = module.Sum().of
    assert kept(1) == 4
    found = set()
    for change in mutating.changes_of(file, tmp_path / "cache").values():
        start, end = mutating.places_of(source)[change.function]
        text = source[start : change.start] + change.text + source[change.end : end]
        assert mutating.replace(module, change.function, text)
        try:
            found.add((change.function, kept(1)))
        except TypeError:
            found.add((change.function, None))
        assert mutating.replace(module, change.function, source[start:end])
    assert kept(1) == 4
    assert found >= {("Sum.of", 6), ("Sum.of", 1.0), ("Sum.of", None), ("Sum._p", 0), ("Sum._p", 6)}


MARKED = '''"""Text."""


def one(a, b=2):
    """Text."""
    if a:
        b += 1
    elif b:
        b = (
            3 * b
        )
    return b
'''


@pytest.mark.usefixtures("docs")
@pytest.mark.parametrize(
    ("word", "arguments", "reached"),
    [
        ("3 * b", (0, 1), True),
        ("3 * b", (1, 1), False),
        ("elif b", (1,), True),
        ("b += 1", (1,), True),
        ("=2", (1,), True),
    ],
)
def test_a_mark_tells_whether_the_line_of_a_change_runs(
    word: str, arguments: tuple[int, ...], reached: bool
) -> None:
    mutating = importlib.import_module("mutating")
    start = MARKED.index(word) + 1
    line = mutating.line_of(MARKED, mutating.Change("one", start, start + 1, ""))
    made: dict[str, Any] = {}
    exec(mutating.marked(MARKED, {line: 7}), made)  # noqa: S102
    seen: list[int] = []
    made["_mutants_mark"] = seen.append
    assert made["one"](*arguments) is not None
    assert seen == ([7] if reached else [])


@pytest.mark.usefixtures("docs")
def test_what_runs_apart_sees_a_changed_file_and_leaves_no_process(tmp_path: Path) -> None:
    forks = importlib.import_module("mutant_forks")
    file, changed, pid = tmp_path / "file", tmp_path / "changed", tmp_path / "pid"
    file.write_text("old")
    changed.write_text("new")

    def work() -> int:
        read = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", read], start_new_session=True)
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        return 5 if file.read_text() == "new" else 6

    try:
        code = forks.apart(work, {file: changed}, tmp_path, 30, 30)
    except AssertionError as error:
        pytest.skip(str(error))
    assert code == 5
    assert file.read_text() == "old"
    assert (
        not Path("/proc", pid.read_text()).exists()
        or "Z" in Path("/proc", pid.read_text(), "stat").read_text()
    )
    assert forks.apart(lambda: time.sleep(60) or 0, {}, tmp_path, 0.2, 30) < 0
