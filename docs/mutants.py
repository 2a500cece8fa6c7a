"""Measure how many small changes to the code the tests notice, and write docs/mutants.md.

    python docs/mutants.py                        a sample of 300 changes to core/ and the pure modules of jobs/
    python docs/mutants.py --all                  every change to them; hours
    python docs/mutants.py --modules core.state   every change to some modules
    python docs/mutants.py --page                 only write the page again

Mutmut makes the changes and runs the fast tests of `[tool.mutmut]` that reach a changed function, in a copy of
what git tracks, ``.mutants/``. What was measured is kept there, so a run that was cut off goes on, and a changed
function is measured again. After a change of the tests, remove that folder. docs/mutants.json has the results.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import hashlib
import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPY, RESULTS, PAGE = ROOT / ".mutants", ROOT / "docs/mutants.json", ROOT / "docs/mutants.md"
SEED, SAMPLE, AT_ONCE = 16, 300, 1000
KILLED, SURVIVED, UNREACHED = "killed", "survived", "no test reaches it"
WORDS = {1: KILLED, 3: KILLED, 0: SURVIVED, 33: UNREACHED}
TEXT = "a text for people, of which no test compares each word"
OTHER = "a test is missing, or the change changes nothing"

HEAD = """# Small changes that the tests notice

`make mutants` has [mutmut](https://mutmut.readthedocs.io) change the code of `core/` and of the pure modules of `jobs/`, one operator, argument
or text at a time, and runs the fast tests that reach the changed function. A change that no test notices survives. This page is made by
`python docs/mutants.py`.

Only the tests named in `[tool.mutmut]` of `pyproject.toml` run, which take seconds: what other tests notice counts as a survivor here.
"""


def copy() -> None:
    """Bring the copy up to date; mutmut keeps its own results in it."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for folder in (COPY / "tests", COPY / "mutants/tests"):
        shutil.rmtree(folder, ignore_errors=True)  # a test that was moved would run twice
    for name in tracked.decode().strip("\0").split("\0"):
        source, target = ROOT / name, COPY / name
        if source.is_file() and (not target.exists() or target.read_bytes() != source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def mutmut(names: Sequence[str]) -> None:
    """Measure some changes."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names]
    log = COPY / "mutmut.log"
    with log.open("w") as stream:
        code = subprocess.run(command, cwd=COPY, check=False, stdout=stream, stderr=stream).returncode
    if code:
        sys.exit(f"mutmut ended with {code}: see {log}")


def measured() -> dict[str, int | None]:
    """Return each change, with the exit code of its tests; None: not measured."""
    found: dict[str, int | None] = {}
    for path in sorted((COPY / "mutants/orchestrator").rglob("*.meta")):
        found.update(json.loads(path.read_text())["exit_code_by_key"])
    return found


def module_of(name: str) -> str:
    """Return ``core.state`` for a change in `orchestrator.core.state`."""
    return ".".join(name.split(".")[1:3])


def digest_of(module: str) -> str:
    """Return a digest of a module's source."""
    path = ROOT / "orchestrator" / f"{module.replace('.', '/')}.py"
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def change(name: str) -> str:
    """Return what a change changes, as the line before and after it."""
    path = COPY / "mutants/orchestrator" / f"{module_of(name).replace('.', '/')}.py"
    text = path.read_text()
    wanted = name.rpartition(".")[2]
    kinds = (wanted, f"{wanted.rpartition('__mutmut_')[0]}__mutmut_orig")
    found = {
        node.name: (ast.get_source_segment(text, node) or "").splitlines()[1:]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef) and node.name in kinds
    }
    if len(found) < 2:
        return ""
    lines = list(difflib.unified_diff(found[kinds[1]], found[kinds[0]], n=0, lineterm=""))[2:]
    signs = {sign: " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"}
    return f"{signs['-']} -> {signs['+']}"


def interval(killed: int, of: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927) for a share, at 95 %."""
    z, share = 1.96, killed / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z / (1 + z * z / of) * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return middle - half, middle + half


def record(names: Iterable[str], known: Mapping[str, int | None], total: int) -> None:
    """Add what was measured to docs/mutants.json."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"modules": {}}
    modules = {name: each for name, each in old["modules"].items() if each["digest"] == digest_of(name)}
    sizes = Counter(map(module_of, known))
    for name in names:
        code = known[name]
        if code is None:
            continue
        module = module_of(name)
        each = modules.setdefault(
            module, {"digest": digest_of(module), "changes": sizes[module], "found": {}}
        )
        word = WORDS.get(code, "timeout")
        each["found"][name.removeprefix(f"orchestrator.{module}.")] = (
            [word] if word in (KILLED, "timeout") else [word, change(name)]
        )
    content = {"seed": SEED, "changes": total, "modules": dict(sorted(modules.items()))}
    RESULTS.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def page() -> str:
    """Return the page's text."""
    results = json.loads(RESULTS.read_text())
    rows, survivors, sums = [], [], Counter[str]()
    for module, each in results["modules"].items():
        counts = Counter(found[0] for found in each["found"].values())
        good, number = counts[KILLED] + counts["timeout"], sum(counts.values())
        sums.update(counts)
        rows.append(
            f"| `{module}` | {each['changes']} | {number} | {good} | {counts[SURVIVED]} | {counts[UNREACHED]} "
            f"| {100 * good / number:.0f} % |\n"
        )
        for name, found in each["found"].items():
            if found[0] in (SURVIVED, UNREACHED):
                reason = TEXT if "XX" in found[1] else UNREACHED if found[0] == UNREACHED else OTHER
                shown = found[1].replace("|", "\\|").replace("`", "'")[:160]
                survivors.append(
                    f"| `{module}` `{name.replace('__mutmut_', ' ')}` | `{shown}` | {reason} |\n"
                )
    number, good = sum(sums.values()), sums[KILLED] + sums["timeout"]
    low, high = interval(good, number)
    parts = [
        HEAD,
        f"\nMeasured were {number} of {results['changes']} changes: {good} were noticed, {100 * good / number:.1f} %. ",
        "Where they are the random sample of `make mutants`, the share of all changes lies between ",
        f"{100 * low:.1f} and {100 * high:.1f} %, at 95 % ([Wilson](https://doi.org/10.1080/01621459.1927.10502953)).\n",
        "\n| module | changes | measured | noticed | survived | no test reaches it | share |\n",
        "|---|---|---|---|---|---|---|\n",
        *rows,
        "\n## Survivors\n\n| change | from and to | reason |\n|---|---|---|\n",
        *survivors,
    ]
    return "".join(parts)


def main() -> None:
    """Measure, record and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--modules", nargs="*", default=[])
    parser.add_argument("--sample", type=int, default=SAMPLE)
    parser.add_argument("--page", action="store_true")
    arguments = parser.parse_args()
    if not arguments.page:
        copy()
        mutmut(["orchestrator.core.waiting.x_outlook__mutmut_1"])  # makes all changes, and measures one
        names = sorted(measured())
        if arguments.modules:
            names = [name for name in names if module_of(name) in arguments.modules]
        elif not arguments.all:
            names = sorted(random.Random(SEED).sample(names, arguments.sample))
        left = [name for name in names if measured()[name] is None]
        for first in range(0, len(left), AT_ONCE):
            mutmut(left[first : first + AT_ONCE])
            print(f"{min(first + AT_ONCE, len(left))} of {len(left)} measured", flush=True)
        known = measured()
        record(names, known, len(known))
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
