"""Make small changes to functions, and run tests against each; docs/mutants.py decides on which and reports.

Mutmut makes the changes. Its own runner starts pytest once for each, which takes longer than the tests. Here
one pytest collects all tests, and each change runs in a process forked from it. That process replaces the
code of the one function, so that every reference to it has the change, and runs the tests until one fails.
The changed file is also written to the copy of the project that the tests use, for processes they start.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import json
import mmap
import os
import resource
import signal
import sys
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

KILLED, SURVIVED, UNREACHED, TIMEOUT = "killed", "survived", "no test reaches it", "timeout"
BROKEN = 77  # exit code where this module itself failed
MEMORY = 3 << 30  # bytes that a change may make a test take


class Change(NamedTuple):
    """One change to a function.

    Attributes:
        function: its name, ``Class.method`` or ``function``.
        start, end: which characters of the file are replaced.
        text: what replaces them.
    """

    function: str
    start: int
    end: int
    text: str


def changes_of(path: Path, cache: Path) -> dict[str, Change]:
    """Return all changes that mutmut makes to a file, by name; a file of the folder `cache` keeps them."""
    source = path.read_text()
    kept = cache / f"{hashlib.sha256(f'{path.name} {source}'.encode()).hexdigest()[:24]}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({name: list(change) for name, change in _changes(path, source)}))
    return {name: Change(*fields) for name, fields in json.loads(kept.read_text()).items()}


def _changes(path: Path, source: str) -> Iterator[tuple[str, Change]]:
    from mutmut.mutation.file_mutation import mutate_file_contents

    made = mutate_file_contents(str(path), source, None, None)
    lines, spans = made.code.splitlines(keepends=True), made.line_span_by_function_name
    for name in made.mutant_names:
        mangled, _, _ = name.partition("__mutmut_")
        function = ".".join(mangled.split("ǁ")[1:]) if "ǁ" in mangled else mangled.removeprefix("x_")
        short = function.rpartition(".")[2]
        old, new = (
            "".join(lines[spans[each].start - 1 : spans[each].end]).replace(each, short, 1)
            for each in (f"{mangled}__mutmut_orig", name)
        )
        first, end = _places(source)[function]
        text = source[first:end]
        begin = old.find(f"def {short}") - text.find(f"def {short}")
        old, new = old[begin:].rstrip("\n"), new[begin:].rstrip("\n")
        assert text.startswith(old), f"mutmut's copy of {function} is not its source"
        same = _shared(old, new)
        tail = _shared(old[same:][::-1], new[same:][::-1])
        yield name, Change(function, first + same, first + len(old) - tail, new[same : len(new) - tail])


def _shared(one: str, other: str) -> int:
    """Return how many characters two texts share at their start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _functions(source: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.parse(source).body:
        for each in node.body if isinstance(node, ast.ClassDef) else (node,):
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{node.name}.{each.name}" if isinstance(node, ast.ClassDef) else each.name, each


@functools.cache
def _places(source: str) -> dict[str, tuple[int, int]]:
    """Return where the definition of each function begins and ends, in characters."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return {
        name: (starts[node.lineno - 1], starts[node.end_lineno or 0]) for name, node in _functions(source)
    }


def _function(module: types.ModuleType, name: str) -> types.FunctionType | None:
    """Return the function object in a module; None if something else has its name there."""
    owner, _, short = name.rpartition(".")
    found: Any = vars(vars(module)[owner] if owner else module).get(short)
    found = getattr(found, "__func__", found)
    return found if isinstance(found, types.FunctionType) else None


def _replace(module: types.ModuleType, name: str, text: str) -> bool:
    """Give a function the code of a changed definition; return whether that was possible in this process."""
    target = _function(module, name)
    if target is None:
        return False
    owner, _, short = name.rpartition(".")
    text = textwrap.dedent(text)
    if owner:
        text = f"class {owner}:\n{textwrap.indent(text, ' ')}"
    future = sys.modules["__future__"].annotations.compiler_flag
    made: dict[str, Any] = {}
    try:
        exec(compile(text, str(module.__file__), "exec", future), vars(module), made)  # noqa: S102
        new = made[owner].__dict__[short] if owner else made[short]
        target.__code__ = new.__code__
    except (NameError, ValueError):  # a default of the class's own; another number of outer variables
        return False
    target.__defaults__, target.__kwdefaults__ = new.__defaults__, new.__kwdefaults__
    return True


class Plan(NamedTuple):
    """What one run of pytest measures; a JSON file holds it.

    Attributes:
        changes: name to module and `Change`.
        results: the file that gets a line of JSON for each change.
        reached: whether to find first which tests reach which function; else their words decide.
        seconds: at most so much processor time for each change.
    """

    changes: dict[str, tuple[str, Change]]
    results: Path
    reached: bool
    seconds: float


def _plan() -> Plan:
    data = json.loads(Path(os.environ["MUTANTS_PLAN"]).read_text())
    changes = {name: (module, Change(*fields)) for name, (module, fields) in data["changes"].items()}
    return Plan(changes, Path(data["results"]), data["reached"], data["seconds"])


def pytest_configure() -> None:
    """Have failing examples neither kept nor made smaller, which takes longer than to find them."""
    from hypothesis import Phase, settings

    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", max_examples=25, phases=phases, database=None, derandomize=True)
    settings.load_profile("mutants")


def pytest_runtestloop(session: Any) -> bool:
    """Measure every change of the plan, in place of a run of the tests."""
    plan = _plan()
    if session.testsfailed:
        raise session.Interrupted("the tests cannot be collected")
    for module, _ in plan.changes.values():
        with contextlib.suppress(ImportError):  # an extra that is not installed
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # memory that is not touched is not copied
    tests = _reached(plan, session.items) if plan.reached else _likely(plan, session.items)
    with plan.results.open("a") as stream:
        for number, (name, (module, change)) in enumerate(plan.changes.items(), start=1):
            items = tests[module, change.function]
            word, test = _measure(module, change, items, plan.seconds)
            # What noticed one change of a function often notices the next one.
            items.sort(key=lambda item, test=test: item.nodeid != test)
            stream.write(json.dumps([name, word, test]) + "\n")
            stream.flush()
            if number % 50 == 0:
                print(f"{number} of {len(plan.changes)}", file=sys.stderr, flush=True)
    return True


def _run(item: Any, following: Any) -> bool:
    """Run one test; return whether it passed."""
    from _pytest.runner import runtestprotocol

    return not any(report.failed for report in runtestprotocol(item, log=False, nextitem=following))


def _in_fork(work: Callable[[], int], seconds: float, wall_s: float) -> int:
    """Return the exit code of some work in a forked process; negative if a limit or a signal ended it."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        code = BROKEN
        try:
            code = work()
        finally:
            os._exit(code)
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    handle, end = os.pidfd_open(child), time.monotonic() + wall_s
    try:
        import select

        select.select([handle], [], [], max(0.0, end - time.monotonic()))
    finally:
        os.close(handle)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and what it started
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _reached(plan: Plan, items: Sequence[Any]) -> Mapping[tuple[str, str], list[Any]]:
    """Return for each function the tests that call it, the shortest first.

    One process runs all tests. There each function's code marks a byte of shared memory first.
    """
    functions = list(dict.fromkeys((module, change.function) for module, change in plan.changes.values()))
    marks = mmap.mmap(-1, len(functions) * len(items))
    times = mmap.mmap(-1, 8 * len(items))

    def work() -> int:
        base = [0]
        for number, (module, name) in enumerate(functions):
            _mark(sys.modules[module], name, lambda number=number: marks.__setitem__(base[0] + number, 1))
        for place, item in enumerate(items):
            base[0], start = place * len(functions), time.process_time()
            if not _run(item, items[place + 1] if place + 1 < len(items) else None):
                print(f"fails without a change: {item.nodeid}", file=sys.__stderr__)
                marks[base[0] : base[0] + len(functions)] = bytes(len(functions))
            spent = int(1e6 * (time.process_time() - start))
            times[8 * place : 8 * place + 8] = spent.to_bytes(8, "big")
        return 0

    assert _in_fork(work, 600, 3600) == 0, "the tests did not run to their end"
    order = sorted(range(len(items)), key=lambda place: times[8 * place : 8 * place + 8])
    return {
        function: [items[place] for place in order if marks[place * len(functions) + number]]
        for number, function in enumerate(functions)
    }


def _mark(module: types.ModuleType, name: str, mark: Callable[[], None]) -> None:
    target = _function(module, name)
    if target is None:
        return
    key = f"_marked_{name.replace('.', '_')}"
    old = types.FunctionType(
        target.__code__, target.__globals__, target.__name__, target.__defaults__, target.__closure__
    )
    old.__kwdefaults__ = target.__kwdefaults__
    vars(module)[key], vars(module)[f"{key}_mark"] = old, mark
    made: dict[str, Any] = {}
    exec(f"def stub(*a, **k):\n {key}_mark()\n return {key}(*a, **k)", vars(module), made)  # noqa: S102
    target.__code__ = made["stub"].__code__.replace(co_freevars=target.__code__.co_freevars)
    target.__defaults__ = target.__kwdefaults__ = None


def files_about(module: str, texts: Mapping[Path, str]) -> list[Path]:
    """Return the test files that name a module, else those in the folder of its package.

    Args:
        module: its full name.
        texts: the text of each test file, by its path below the project.
    """
    parent, _, last = module.rpartition(".")
    named = [
        path
        for path, text in texts.items()
        if module in text or (f"from {parent} import" in text and last in text)
    ]
    return named or [path for path in texts if path.parts[1] == module.split(".")[1]]


def _likely(plan: Plan, items: Sequence[Any]) -> Mapping[tuple[str, str], list[Any]]:
    """Return for each function the tests about its module, those first whose words name it."""
    places = {item.path: item.path.relative_to(item.config.rootpath) for item in items}
    texts = {place: path.read_text() for path, place in places.items()}
    bodies = {item: _body(item) for item in items}
    found = {}
    for module, change in plan.changes.values():
        about = set(files_about(module, texts))
        names = [name.lstrip("_") for name in change.function.split(".") if not name.startswith("__")]

        def rank(item: Any, names: Sequence[str] = names) -> int:
            text = texts[places[item.path]]
            words = sum(2 * (name in bodies[item]) + (name in text) for name in names)
            return ("sweep" in item.fixturenames) - words  # the command `sweep` takes longer than a function

        mine = [item for item in items if places[item.path] in about]
        found[module, change.function] = sorted(mine, key=rank)
    return found


def _body(item: Any) -> str:
    import inspect

    try:
        return inspect.getsource(item.function)
    except (OSError, AttributeError):
        return ""


def _measure(module: str, change: Change, items: Sequence[Any], seconds: float) -> tuple[str, str]:
    """Return what became of a change, and the test that noticed it."""
    if not items:
        return UNREACHED, ""
    path = Path(*module.split(".")).with_suffix(".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    source = path.read_text()
    changed = source[: change.start] + change.text + source[change.end :]
    start, end = _places(source)[change.function]
    text = source[start : change.start] + change.text + source[change.end : end]
    seen = mmap.mmap(-1, 4)

    def work() -> int:
        if module in sys.modules:
            _replace(sys.modules[module], change.function, text)
        start = time.process_time()
        for place, item in enumerate(items):
            seen[:] = place.to_bytes(4, "big")
            if not _run(item, items[place + 1] if place + 1 < len(items) else None):
                return 1
            if time.process_time() - start > seconds:
                return 3
        return 0

    before = path.stat()
    path.write_text(changed)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**10))  # no bytecode of the file fits
    try:
        code = _in_fork(work, 2 * seconds + 5, 20 * seconds + 60)
    finally:
        path.write_text(source)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert code != BROKEN, f"{module} {change} cannot be measured"
    test = items[int.from_bytes(seen[:], "big")].nodeid
    return {0: (SURVIVED, ""), 3: (SURVIVED, "")}.get(code, (KILLED if code > 0 else TIMEOUT, test))
