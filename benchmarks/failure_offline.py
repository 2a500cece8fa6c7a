"""How often the rules alone find the true cause of the programs of `benchmarks/causes/`: no sweep runs.

Each program fails once in each form, and what it leaves is kept in a folder: its output, its exit code and
its exception. With ``--kept`` the rules judge again what a folder holds, in a second. The figures of
`benchmarks/failure_causes.py` are of whole sweeps; these serve to look at the rules.

    python benchmarks/failure_offline.py /tmp/failures
    python benchmarks/failure_offline.py /tmp/failures --kept --show
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from failure_truths import CAUSES, PART_OF, PARTS

from orchestrator.core.exits import cause_of_command, cause_of_exit, cause_of_raised
from orchestrator.core.failure import Cause
from orchestrator.core.tracebacks import exception_in
from orchestrator.errors import words_of

HERE = Path(__file__).parent
FORMS = ("stage", "command", "script")
LIMIT_S = 60
HANGING = ("hang", "stubborn_hang", "deadlocked_workers")
"""Programs that only a time limit ends. Time limits are the sweep's, so these are no matter of the rules."""


def fail_as_stage(name: str, kept: Path) -> None:
    """Fail inside this process as a stage does, and keep the exception."""
    import causes.fail  # noqa: F401 - it imports the programs
    from causes.programs import FAILURES

    try:
        FAILURES[name](None)
    except BaseException as error:
        text = traceback.format_exc()
        is_exit = isinstance(error, SystemExit)
        code = error.code if isinstance(error, SystemExit) else ""
        # As the child does: it prints what `SystemExit` holds if that is text, and else the traceback.
        printed = ("" if isinstance(code, int | None) else f"{words_of(code)}\n") if is_exit else text
        sys.stderr.write(printed)
        names = [f"{base.__module__}.{base.__qualname__}" for base in type(error).__mro__]
        kept.write_text(json.dumps({"text": text, "names": names, "words": words_of(error)}))


def capture(folder: Path, form: str, name: str) -> None:
    """Let a program fail, and keep what it leaves."""
    stem = folder / f"{form}-{name}"
    words = {
        "stage": [str(Path(__file__).resolve()), str(stem) + ".json", "--stage", name],
        "command": ["-m", "causes.fail", name],
        "script": ["-m", "causes.fail", "wrapped", name],
    }[form]
    bin_folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    with stem.with_suffix(".log").open("wb") as log:
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=HERE,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return
    stem.with_suffix(".code").write_text(str(done.returncode))


def judged(folder: Path, form: str, name: str) -> tuple[Cause, str, str] | None:
    """Return the cause of a kept failure by the rules of today, its exit code and its output."""
    stem = folder / f"{form}-{name}"
    if not stem.with_suffix(".code").exists():
        return None
    code = int(stem.with_suffix(".code").read_text())
    log = stem.with_suffix(".log").read_bytes()[-65536:].decode(errors="replace")
    if form != "stage":
        return cause_of_command(code, log, oom_killed=False).cause, str(code), log
    exception = stem.with_suffix(".json")
    if not exception.exists():
        return cause_of_exit(code, log, oom_killed=False)[0], str(code), log
    kept = json.loads(exception.read_text())
    return (
        cause_of_raised(exception_in(kept["text"], kept["names"], kept["words"]), log),
        kept["names"][0],
        log,
    )


def main() -> int:
    """Let the programs fail, and print the shares of the right causes."""
    parser = argparse.ArgumentParser(description="How often the rules alone find the true cause.")
    parser.add_argument("folder", type=Path, help="where the failures are kept")
    parser.add_argument("--kept", action="store_true", help="run nothing that is kept")
    parser.add_argument("--show", action="store_true", help="print the output of what is not right")
    parser.add_argument("--parts", choices=tuple(PARTS), nargs="+", default=tuple(PARTS))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        fail_as_stage(args.stage, args.folder)
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    pairs = [
        (form, name)
        for name, part in PART_OF.items()
        for form in FORMS
        if part in args.parts and name not in HANGING
    ]
    with ThreadPoolExecutor(2) as pool:
        runs: list[Callable[[], None]] = []
        for form, name in pairs:
            if not (args.kept and (args.folder / f"{form}-{name}.code").exists()):
                runs.append(lambda form=form, name=name: capture(args.folder, form, name))  # type: ignore[misc]
        list(pool.map(lambda run: run(), runs))
    found = [(form, name, answer) for form, name in pairs if (answer := judged(args.folder, form, name))]
    counts: Counter[tuple[str, str]] = Counter()
    for form, name, (cause, code, log) in found:
        truth = CAUSES[name]
        verdict = "right" if cause is truth else "unknown" if cause is Cause.UNKNOWN else "wrong"
        counts["guessed" if truth is Cause.UNKNOWN and verdict == "wrong" else verdict, PART_OF[name]] += (
            1 if truth is not Cause.UNKNOWN or verdict == "wrong" else 0
        )
        if verdict != "right":
            print(f"{PART_OF[name]}, {form}, {name}: {truth}, but {cause} ({code})")
            if args.show:
                print("    | " + "\n    | ".join(log[-1500:].splitlines()))
    for part in args.parts:
        own = {verdict: counts[verdict, part] for verdict in ("right", "unknown", "wrong", "guessed")}
        print(part, own)
    total = sum(number for (verdict, _), number in counts.items() if verdict != "guessed")
    right = sum(number for (verdict, _), number in counts.items() if verdict == "right")
    print(f"right: {right} of {total}, {right / max(total, 1):.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
