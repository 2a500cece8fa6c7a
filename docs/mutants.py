"""Measure how many small changes to the code the tests notice, and write docs/mutants.md.

    python docs/mutants.py                        a random sample of the changes to core/ and the pure modules of jobs/
    python docs/mutants.py --all                  every change to them; half an hour on two idle cores
    python docs/mutants.py --modules core.state   every change to some of these modules
    python docs/mutants.py --rest                 310 random changes to all other modules
    python docs/mutants.py --rest --modules api.run serving --per-draw 40 --tests tests/api tests/serving
                                                  40 changes to each of these modules, against some tests:
                                                  printed, and on no page, as it is no sample of anything
    python docs/mutants.py --page                 only write the page again

What was measured is kept in ``.mutants/``, so a run that was cut off, or had its ``--minutes``, goes on. A change
that was noticed is not measured again unless its module changes. One that was not noticed is measured again when
other tests reach it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

from mutant_tests import KILLED, SURVIVED, TIMEOUT, UNREACHED  # noqa: E402
from mutating import Change, changes_of  # noqa: E402

WORK, RESULTS, PAGE = ROOT / ".mutants", ROOT / "docs/mutants.json", ROOT / "docs/mutants.md"
SEED, SAMPLE, DRAWS, PER_DRAW = 18, 400, 62, 5
CORE_TESTS = ("tests/core", "tests/jobs", "tests/store/test_decisions.py")
NOT_RUN = ("slurm", "ray", "test_gpu_check.py")
"""Tests that need a cluster or a GPU, below tests/."""
LEFT_OUT = {
    "sft.generators.vllm": "needs a GPU and vLLM",
    "launchers.ray.actor": "runs inside a Ray cluster alone",
    "launchers.ray.actors": "runs inside a Ray cluster alone",
    "launchers.ray.driver": "runs inside a Ray cluster alone",
    "testing": "is itself tests, which plugins pass",
}
"""Modules that are not changed, and why."""
TESTS_S = 30.0
"""A change is tried against its shortest tests, which together take so many seconds without it."""


def modules(rest: bool) -> dict[str, Path]:
    """Return the files of core/ and of the pure modules of jobs/, or all others, by name without `orchestrator`."""
    found = {}
    for path in sorted((ROOT / "orchestrator").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "orchestrator").with_suffix("").parts)
        name = name.removesuffix(".__init__")
        is_core = name.startswith("core.") or name in ("jobs.cells", "jobs.judgement", "jobs.records")
        if is_core is not rest and not any(f"{name}.".startswith(f"{each}.") for each in LEFT_OUT):
            found[name] = path
    return found


def digest_of(path: Path) -> str:
    """Return a digest of a module's source."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def copy() -> Path:
    """Bring the copy of what git tracks up to date, in which the tests run."""
    target = WORK / "copy"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = {name for name in tracked.decode().strip("\0").split("\0") if (ROOT / name).is_file()}
    for old in target.rglob("*"):
        if old.is_file() and "__pycache__" not in old.parts and str(old.relative_to(target)) not in names:
            old.unlink()
    for name in names:
        new = target / name
        if not new.exists() or new.read_bytes() != (ROOT / name).read_bytes():
            new.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, new)
    shutil.copy(
        ROOT / "docs/mutant_marks.py", target
    )  # where every process that imports the package finds it
    (target / "mutant_marks.txt").touch()
    return target


def sampled(files: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, tuple[str, Change]]:
    """Return the changes to measure: all, those of some modules, or a sample."""
    found = {
        key_of(module, digest_of(path), name): (module, change)
        for module, path in files.items()
        if not arguments.modules or module in arguments.modules
        for name, change in changes_of(path, WORK / "changes").items()
    }
    if arguments.all or arguments.modules:
        return found
    names = random.Random(arguments.seed).sample(sorted(found), min(arguments.sample, len(found)))
    return {name: found[name] for name in names}


def drawn(files: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, tuple[str, Change]]:
    """Return random changes: as many of each drawn, or named, module; larger ones are drawn more often.

    To make all changes first, of which a sample could be drawn evenly, takes longer than to measure these.
    """
    names = sorted(files)
    weights = [files[name].stat().st_size for name in names]
    found: dict[str, tuple[str, Change]] = {}
    seed, number = arguments.seed, arguments.per_draw
    chosen = [name for name in names for word in arguments.modules if f"{name}.".startswith(f"{word}.")]
    for draw, module in enumerate(chosen or random.Random(seed).choices(names, weights, k=DRAWS)):
        all_of = changes_of(files[module], WORK / "changes")
        sample = random.Random(f"{seed} {module} {draw}").sample(sorted(all_of), min(number, len(all_of)))
        for name in sample:
            found[f"{draw} {key_of(module, digest_of(files[module]), name)}"] = module, all_of[name]
    return found


def rest_tests() -> list[str]:
    """Return the folders and files of the tests for modules outside core."""
    paths = [*(ROOT / "tests").glob("*/"), *(ROOT / "tests").glob("test_*.py")]
    return sorted(str(path.relative_to(ROOT)) for path in paths if path.name not in (*NOT_RUN, "__pycache__"))


def measure(
    changes: Mapping[str, tuple[str, Change]], tests: Sequence[str], arguments: argparse.Namespace
) -> None:
    """Run the tests against each change; the results are added to a file of `.mutants/`."""
    where, plan = copy(), WORK / "plan.json"
    named = {name: [f"orchestrator.{module}", change] for name, (module, change) in changes.items()}
    rest = {"at_once": arguments.at_once, "tests_s": TESTS_S, "until": time.time() + 60 * arguments.minutes}
    todo = [name for name in changes if not arguments.rest or int(name.split()[0]) < arguments.draws]
    plan.write_text(json.dumps({"changes": named, "todo": todo, "folder": str(WORK), **rest}))
    path = os.pathsep.join((str(where), str(where / "docs")))
    env = {**os.environ, "MUTANTS_PLAN": str(plan), "PYTHONPATH": path, "PYTHONHASHSEED": "0"}
    python = [sys.executable, "-m"]
    subprocess.run([*python, "compileall", "-q", "orchestrator", "tests"], cwd=where, check=False)
    command = [*python, "pytest", "-q", "-s", "-p", "mutant_tests", "-p", "no:cacheprovider", "--tb=native"]
    command += ["--assert=plain", "--rootdir=.", "-m", "not long", *tests]
    log = WORK / "pytest.log"
    with log.open("w") as stream:
        code = subprocess.run(command, cwd=where, env=env, check=False, stdout=stream).returncode
    if code not in (0, 5):
        sys.exit(f"pytest ended with {code}: {log}")


def key_of(module: str, digest: str, name: str) -> str:
    """Return the name of a change that holds as long as its module is the same."""
    return f"{module} {digest} {name}"


def known() -> dict[str, list[str]]:
    """Return what was measured: key to the words of each time that it was, oldest first."""
    path, found = WORK / "results.jsonl", dict[str, list[str]]()
    for key, word, *_ in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        found.setdefault(key, []).append(word)
    return found


def shown(source: str, change: Change) -> str:
    """Return what a change changes, as the lines before and after it."""
    first = source.rfind("\n", 0, change.start) + 1
    last = source.find("\n", change.end)
    old, new = source[first:last], source[first : change.start] + change.text + source[change.end : last]
    return " -> ".join(" ".join(text.split()) for text in (old, new))


def interval(killed: int, of: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927) for a share, at 95 %."""
    z, share = 1.96, killed / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return middle - half, middle + half


def record(part: str, files: Mapping[str, Path], changes: Mapping[str, tuple[str, Change]]) -> None:
    """Put what was measured of core or the rest into docs/mutants.json."""
    found, each, draws, first = known(), dict[str, dict[str, Any]](), dict[str, list[int]](), 0
    begun = {key.split()[0] for key in changes if part == "rest" and key not in found}
    for key, (module, change) in changes.items():
        if key in found and key.split()[0] not in begun:  # parts of a draw alone would favour what is fast
            counts = each.setdefault(
                module, {"digest": digest_of(files[module]), "counts": Counter(), "left": {}}
            )
            word = found[key][-1]
            first += found[key][0] in (KILLED, TIMEOUT)
            counts["counts"][word] += 1
            draws.setdefault(key.split()[0], []).append(word in (KILLED, TIMEOUT))
            if word in (SURVIVED, UNREACHED):
                counts["left"][key.split()[-1]] = shown(files[module].read_text(), change)
    total = (
        sum(len(changes_of(path, WORK / "changes")) for path in files.values()) if part == "core" else None
    )
    if not each:
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    shares = [sum(good) / len(good) for good in draws.values()] if part == "rest" else []
    by_module = dict(sorted(each.items()))
    results[part] = {"changes": total, "first": first, "shares": shares, "modules": by_module}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


KINDS = (
    (
        "a text for people, of which no test compares each word",
        lambda old, new: "XX" in new and "XX" not in old,
    ),
    ("the same text in small or capital letters", lambda old, new: old != new and old.lower() == new.lower()),
    (
        "`strict=True` states that the lengths agree; it fails only where another rule is broken",
        lambda old, new: "strict=True" in old and "strict=True" not in new,
    ),
    (
        "`cast` and types change nothing at run time",
        lambda old, new: "cast(" in old,
    ),
)
"""Kinds of survivors that need no reason of their own."""


def reason(change: str) -> str:
    """Return why a change may survive; "" for one that a test should notice."""
    old, _, new = change.partition(" -> ")
    return next((text for text, fits in KINDS if fits(old, new)), "")


def path_of(module: str) -> str:
    """Return the path of a module below `orchestrator`, without its ending."""
    return module.replace(".", "/")


def function_of(name: str) -> str:
    """Return the function that a change changes, as mutmut names changes."""
    mangled = name.partition("__mutmut_")[0]
    return ".".join(mangled.split("ǁ")[1:]) if "ǁ" in mangled else mangled.removeprefix("x_")


HEAD = """# Small changes that the tests notice

`make mutants` has [mutmut](https://mutmut.readthedocs.io) change the code one operator, argument or text at a time, and runs tests against
each change. A change that no test notices survives. This page is made by `python docs/mutants.py`.
"""
PARTS = {
    "core": """
## `core/` and the pure modules of `jobs/`

Each change is tried against the tests of `tests/core`, `tests/jobs` and `tests/store/test_decisions.py` that reach its line, the shortest
first, until one fails. What other tests notice counts as a survivor here.
""",
    "rest": """
## All other modules

Five random changes to each of 62 drawn modules, the larger ones drawn more often (`make mutants-rest`). Each is tried
against the tests that reach its line, the shortest first, until one fails; together they take at most 30 seconds
without it. Tests of real Slurm and Ray clusters and tests of minutes do not run. So the share is a lower bound of what all tests notice.
""",
}


def page() -> str:
    """Return the page's text."""
    results = json.loads(RESULTS.read_text())
    parts = [HEAD]
    for part, intro in PARTS.items():
        if part in results:
            parts += [intro, *_part(results[part])]
    if "rest" in results:
        parts += [
            "\nLeft out are:\n\n",
            *(f"- `{path_of(module)}`: {why}\n" for module, why in LEFT_OUT.items()),
        ]
    return "".join(parts)


def _part(result: Mapping[str, Any]) -> Iterable[str]:
    rows, sums, kinds = [], Counter[str](), Counter[str]()
    survivors: list[str] = []
    for module, each in result["modules"].items():
        counts = Counter(each["counts"])
        good, number = counts[KILLED] + counts[TIMEOUT], sum(counts.values())
        sums.update(counts)
        rows.append(
            f"| `{path_of(module)}` | {number} | {good} | {counts[SURVIVED]} | {counts[UNREACHED]} | {100 * good / number:.0f} % |\n"
        )
        for name, change in each["left"].items():
            why = reason(change) or "a test is missing"
            kinds[why] += 1
            text = change.replace("|", "\\|").replace("`", "'")
            text = text if len(text) <= 200 else f"{text[:200]}..."
            survivors.append(f"| `{path_of(module)}` `{function_of(name)}` | `{text}` | {why} |\n")
    number, good = sum(sums.values()), sums[KILLED] + sums[TIMEOUT]
    first = result["first"]
    of = f" of {result['changes']}" if result["changes"] else ""
    yield f"\nMeasured were {number}{of} changes: {first} were noticed, **{100 * first / number:.1f} %**."
    if number != result["changes"]:
        low, high = interval(first, number)
        yield f" The share of all lies between {100 * low:.1f} and {100 * high:.1f} %, at 95 % "
        yield "([Wilson](https://doi.org/10.1080/01621459.1927.10502953))."
    if len(result["shares"]) > 1:
        share, half = (
            mean(result["shares"]),
            1.96 * stdev(result["shares"]) / math.sqrt(len(result["shares"])),
        )
        yield f" By the spread between the {len(result['shares'])} draws, which differ more than single changes would, it "
        yield f"lies between {100 * (share - half):.1f} and {100 * (share + half):.1f} %."
    if good != first:
        yield f"\n\nThen tests were written for some of the survivors. With them {good} are noticed, {100 * good / number:.1f} %. That share "
        yield "says nothing of other changes, as the tests were written for these. The tables below hold it."
    yield "\n\n| survivors | reason |\n|---|---|\n"
    yield from (f"| {count} | {why} |\n" for why, count in kinds.most_common())
    yield "\n| module | measured | noticed | survived | no test reaches it | share |\n|---|---|---|---|---|---|\n"
    yield from rows
    yield "\n<details><summary>The survivors</summary>\n\n| function | from and to | reason |\n|---|---|---|\n"
    yield from survivors
    yield "\n</details>\n"


def main() -> None:
    """Measure, record and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--rest", action="store_true")
    parser.add_argument("--modules", nargs="*", default=[])
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--draws", type=int, default=DRAWS, help="measure only the first draws")
    parser.add_argument(
        "--per-draw", type=int, default=PER_DRAW, help="changes to each drawn or named module"
    )
    parser.add_argument("--tests", nargs="*", default=[], help="of --rest: try only these")
    parser.add_argument("--at-once", type=int, default=4, help="how many changes are tried at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing after so many minutes")
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not arguments.page:
        files = modules(rest=arguments.rest)
        changes = drawn(files, arguments) if arguments.rest else sampled(files, arguments)
        found = known()
        if any(found.get(key, [""])[-1] not in (KILLED, TIMEOUT) for key in changes):
            rest = arguments.tests or rest_tests()
            measure(changes, rest if arguments.rest else CORE_TESTS, arguments)
        if left := changes.keys() - known().keys():
            print(f"{len(left)} of {len(changes)} changes are left: run again", file=sys.stderr)
        if arguments.rest and (arguments.modules or arguments.tests):
            return
        record("rest" if arguments.rest else "core", files, changes)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
