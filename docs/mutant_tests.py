"""Run tests against small changes, several side by side; a plugin of pytest that docs/mutants.py starts.

One pytest collects all tests and imports what they need. Each change runs in a process forked from it, in
which the one function has the code of its change. A mount, which that process and all that it starts alone
see, puts the changed file in the place of the file. So changes need no copy of the project each.

First the tests run without a change but with marks: at each line of interest, the test that runs it is
written down, in whichever process the line runs. Then each change runs the tests that reach its line until
one fails. A test that fails without a change as well is left out and named.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mutant_marks
from mutant_forks import BROKEN, apart, prepare, spread, start_server, temporary
from mutating import Change, changed, line_of, marked, places_of, replace

KILLED, SURVIVED, UNREACHED, TIMEOUT = "killed", "survived", "no test reaches it", "timeout"
CPU_S, TEST_S, UNIT_S = 120, 90, 900
"""Seconds: of processor for a process; for a test without a change; for all tests that share a fork."""


class Plan(NamedTuple):
    """What one run of pytest measures; a JSON file holds it.

    Attributes:
        changes: name to module and `Change`; lines of all are marked, as a run that goes on needs them.
        todo: the names of those to measure.
        folder: where results, reached lines and temporary files are kept.
        at_once: how many processes run tests at a time.
        tests_s: a change is tried against its shortest tests, which together take so many seconds.
        until: the clock's time after which nothing new begins.
    """

    changes: dict[str, tuple[str, Change]]
    todo: list[str]
    folder: Path
    at_once: int
    tests_s: float
    until: float


class Reached(NamedTuple):
    """What a test did without a change: how long it took, how it failed, which lines it ran."""

    seconds: float
    failure: str
    lines: set[str]


def _plan() -> Plan:
    data = json.loads(Path(os.environ["MUTANTS_PLAN"]).read_text())
    data["changes"] = {name: (module, Change(*fields)) for name, (module, fields) in data["changes"].items()}
    return Plan(**{**data, "folder": Path(data["folder"])})


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
    prepare()
    gc.collect()
    gc.freeze()  # memory that is not touched is not copied
    lines = {name: _line(module, change) for name, (module, change) in plan.changes.items()}
    reached = _record(plan, session.items, lines)
    known = [(item, reached[_key(item)]) for item in session.items if _key(item) in reached]
    if left := len(session.items) - len(known):
        print(f"{left} tests have yet to run without a change: run again", file=sys.stderr)
    else:
        _measure_all(plan, known, lines)
    return True


def _path(module: str) -> Path:
    path = Path(*module.split(".")).with_suffix(".py")
    return path if path.exists() else path.with_suffix("") / "__init__.py"


def _line(module: str, change: Change) -> str:
    """Return the name of the line in which a change begins; it holds as long as its module is the same."""
    source = _path(module).read_text()
    return f"{module} {hashlib.sha256(source.encode()).hexdigest()[:12]} {line_of(source, change)}"


# Which tests reach which lines


def _key(item: Any) -> str:
    """Return the name of a test that holds as long as its file is the same."""
    return f"{item.nodeid} {hashlib.sha256(item.path.read_bytes()).hexdigest()[:12]}"


def _record(plan: Plan, items: Sequence[Any], lines: Mapping[str, str]) -> dict[str, Reached]:
    """Return what each test reaches; what is not in the file of earlier runs, or failed there, is run."""
    wanted = sorted(set(lines.values()))
    file = plan.folder / f"reached-{hashlib.sha256(chr(10).join(wanted).encode()).hexdigest()[:12]}.jsonl"
    known = _reached(file)
    units: dict[str, list[Any]] = {}
    for item in items:
        if _key(item) not in known or known[_key(item)].failure:
            group = item.get_closest_marker("xdist_group")  # such tests share what is expensive to set up
            units.setdefault(group.args[0] if group and group.args else str(item.path), []).append(item)
    edits = _marked(plan, wanted)
    jobs = [(plan, unit, wanted, edits, file) for unit in units.values()]
    for number, _ in enumerate(spread(_record_unit, jobs, at_once=plan.at_once, until=plan.until), start=1):
        print(f"tests without a change: {number} of {len(jobs)} groups", file=sys.stderr, flush=True)
    return _reached(file)


def _marked(plan: Plan, wanted: Sequence[str]) -> dict[str, tuple[Path, dict[str, str]]]:
    """Return for each module a file of its source with marks, and its changed functions with them."""
    numbers = dict[str, dict[int, int]]()
    for number, name in enumerate(wanted):
        module, _, line = name.split()
        numbers.setdefault(module, {})[int(line)] = number
    found, folder = {}, plan.folder / "marked"
    folder.mkdir(exist_ok=True)
    for module, lines in numbers.items():
        file = _written(folder / module, marked(_path(module).read_text(), lines))
        digest = int(hashlib.sha256(file.read_bytes()).hexdigest()[:7], 16)
        os.utime(file, (digest, digest))  # bytecode is kept for this text alone
        places = places_of(text := file.read_text())
        functions = {change.function for its, change in plan.changes.values() if its == module}
        found[module] = file, {name: text[slice(*places[name])] for name in functions}
    return found


def _reached(file: Path) -> dict[str, Reached]:
    texts = file.read_text().splitlines() if file.exists() else []
    return {
        key: Reached(seconds, failure, set(lines)) for key, seconds, failure, lines in map(json.loads, texts)
    }


def _record_unit(
    plan: Plan,
    unit: Sequence[Any],
    wanted: Sequence[str],
    edits: Mapping[str, tuple[Path, Mapping[str, str]]],
    file: Path,
) -> None:
    """Run some tests with marks, and append to a file what each reaches."""
    with temporary() as folder:
        mounts = {_path(module): path for module, (path, _) in edits.items()}
        mounts[mutant_marks.FILE] = _written(folder / "marks", "")

        def work() -> int:
            for module, (_, functions) in edits.items():
                if module in sys.modules:
                    vars(sys.modules[module])["_mutants_mark"] = mutant_marks.mark
                    for name, text in functions.items():
                        replace(sys.modules[module], name, text)
            start_server(unit)
            _run_marked(unit, wanted, file, plan.until)
            return 0

        apart(work, mounts, folder, UNIT_S, UNIT_S)


def _run_marked(unit: Sequence[Any], wanted: Sequence[str], file: Path, until: float) -> None:
    """Run tests; what a fixture of several tests reaches counts for each of them."""
    shared: dict[str, set[str]] = {}

    def marks() -> set[str]:
        found = {wanted[int(number)] for number in mutant_marks.FILE.read_text().split()}
        os.truncate(mutant_marks.FILE, 0)
        mutant_marks.seen.clear()
        return found

    def too_long(*_: object) -> None:
        raise TimeoutError("this test takes too long to be tried against changes")

    signal.signal(signal.SIGALRM, too_long)
    for item, following in zip(unit, [*unit[1:], None], strict=True):
        if time.time() > until:
            return
        before, start = marks(), time.monotonic()
        signal.alarm(TEST_S)
        in_setup: set[str] = set()
        _AFTER_SETUP[:] = [lambda found=in_setup: found.update(marks())]
        failure = _failure(item, following)
        signal.alarm(0)
        fixtures = {
            name if defs[-1].scope == "session" else f"{item.path} {name}"
            for name, defs in item._fixtureinfo.name2fixturedefs.items()
            if defs and defs[-1].scope != "function"
        }
        for name in fixtures - shared.keys():
            shared[name] = in_setup | before
        lines = in_setup.union(marks(), *(shared[name] for name in fixtures))
        with file.open("a") as stream:
            stream.write(json.dumps([_key(item), time.monotonic() - start, failure, sorted(lines)]) + "\n")


_AFTER_SETUP: list[Callable[[], None]] = []


def pytest_runtest_call() -> None:
    """Read the marks between the setup of a test and its call."""
    for each in _AFTER_SETUP:
        each()


def _failure(item: Any, following: Any) -> str:
    """Run one test; return the last line of its traceback if it failed."""
    from _pytest.runner import runtestprotocol

    for report in runtestprotocol(item, log=False, nextitem=following):
        if report.failed:
            return f"{report.when}: {report.longreprtext.strip().splitlines()[-1:] or ['']}"[:300]
    return ""


# What becomes of a change


def _measure_all(plan: Plan, known: Sequence[tuple[Any, Reached]], lines: Mapping[str, str]) -> None:
    """Measure all changes that were not measured with the same tests; add the results to a file."""
    for item, found in known:
        if found.failure:
            print(f"fails without a change, and is left out: {item.nodeid} {found.failure}", file=sys.stderr)
    results, jobs = plan.folder / "results.jsonl", []
    texts = results.read_text().splitlines() if results.exists() else []
    before = {each[0]: each for each in map(json.loads, texts)}
    for name in plan.todo:
        module, change = plan.changes[name]
        mine = _chosen(
            change,
            [each for each in known if not each[1].failure and lines[name] in each[1].lines],
            plan.tests_s,
        )
        digest = hashlib.sha256("".join(_key(item) for item, _ in mine).encode()).hexdigest()[:12]
        _, word, _, _, its_tests, _ = before.get(name, [""] * 6)
        if word not in (KILLED, TIMEOUT) and its_tests != digest:
            jobs.append((plan, name, module, change, mine, digest))
    (plan.folder / "controls.jsonl").write_text("")
    for number, result in enumerate(spread(_measure, jobs, at_once=plan.at_once, until=plan.until), start=1):
        with results.open("a") as stream:
            stream.write(json.dumps(result) + "\n")
        print(f"{number} of {len(jobs)}: {' '.join(map(str, result[:3]))}", file=sys.stderr, flush=True)


def _chosen(change: Change, tests: Sequence[tuple[Any, Reached]], tests_s: float) -> list[tuple[Any, float]]:
    """Return the tests for a change, shortest first; those sooner whose words name its function."""
    names = [name.lstrip("_") for name in change.function.split(".") if not name.startswith("__")]
    chosen, sum_s = [], 0.0
    for item, found in sorted(tests, key=lambda each: each[1].seconds / (1 + 2 * _words(each[0], names))):
        sum_s += found.seconds
        if not chosen or sum_s <= tests_s:
            chosen.append((item, found.seconds))
    return chosen


def _words(item: Any, names: Sequence[str]) -> int:
    import inspect

    try:
        text = inspect.getsource(item.function)
    except (OSError, AttributeError):
        return 0
    return sum(name in text for name in names)


def _measure(
    plan: Plan, name: str, module: str, change: Change, tests: Sequence[tuple[Any, float]], digest: str
) -> list[Any]:
    """Return a change's name, what became of it, the test that noticed it, how, which tests, seconds."""
    start = time.monotonic()
    while tests:
        code, place, message = _try(
            [item for item, _ in tests], sum(s for _, s in tests), (name, module, change)
        )
        assert code != BROKEN, f"{name} cannot be measured: {message}"
        if code == 0:
            return [name, SURVIVED, "", "", digest, time.monotonic() - start]
        noticed, seconds = tests[place]
        if _passes(plan, noticed, seconds):
            word = KILLED if code == 1 else TIMEOUT
            return [name, word, noticed.nodeid, message, digest, time.monotonic() - start]
        print(f"fails without a change, and is left out: {noticed.nodeid}", file=sys.stderr, flush=True)
        tests = [each for each in tests if each[0] is not noticed]
    return [name, UNREACHED, "", "", digest, time.monotonic() - start]


def _passes(plan: Plan, item: Any, seconds: float) -> bool:
    """Return whether a test passes without a change, in the circumstances in which changes are tried."""
    file = plan.folder / "controls.jsonl"
    found = dict(map(json.loads, file.read_text().splitlines()))
    if item.nodeid not in found:
        found[item.nodeid] = _try([item], seconds, None)[0] == 0
        with file.open("a") as stream:
            stream.write(json.dumps([item.nodeid, found[item.nodeid]]) + "\n")
    return bool(found[item.nodeid])


def _try(items: Sequence[Any], seconds: float, of: tuple[str, str, Change] | None) -> tuple[int, int, str]:
    """Run tests with a change until one fails; return the exit code, the last test and its failure."""
    with temporary() as folder:
        mounts, text = dict[Path, Path](), ""
        if of is not None:
            name, module, change = of
            path = _path(module)
            whole, text = changed(path.read_text(), change)
            mounts[path] = _written(folder / "changed.py", whole)
            # No bytecode of the file, or of it with another change, may have the same time.
            older = (
                path.stat().st_mtime_ns - (1 + int(hashlib.sha256(name.encode()).hexdigest()[:7], 16)) * 10**9
            )
            os.utime(mounts[path], ns=(older, older))

        def work() -> int:
            if of is not None and of[1] in sys.modules:
                replace(sys.modules[of[1]], of[2].function, text)
            start_server(items)
            for place, (item, following) in enumerate(zip(items, [*items[1:], None], strict=True)):
                (folder / "place").write_text(str(place))
                if failure := _failure(item, following):
                    (folder / "message").write_text(failure)
                    return 1
            return 0

        code = apart(work, mounts, folder, 60 + 4 * seconds, CPU_S)
        place, message = (_text(folder / each) for each in ("place", "message"))
        assert place, f"{of} cannot be measured"
        return code, int(place), message


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
