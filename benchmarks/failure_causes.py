"""How often the recorded cause of a failure is the true one: failures of known causes, on three launchers.

Each program of `benchmarks/causes/` fails as a stage, as a command, and inside a script that starts
it: on this machine, on a real Slurm and on a real Ray. Beside them, jobs are hurt from outside. The truth is
in this file alone: neither the sweep nor the stages know it.

    python benchmarks/failure_causes.py --report docs/failure-causes.md
    python benchmarks/failure_causes.py --only local
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.faults import attempts, processes
from chaos.places import SWEEP, Place, Places
from failure_truths import CAUSES, PART_OF, PARTS

from orchestrator.core.failure import Cause

RESULTS = Path(__file__).parent / "causes/results.jsonl"
FIRST = Path(__file__).parent / "causes/first.jsonl"
"""What was recorded of programs before the rules were changed by any of them."""
GROUP, LIMIT_S = 40, 45
OF_USERS = (Cause.CONFIG, Cause.DATA, Cause.CODE)
OF_MACHINES = (Cause.NODE_LOST, Cause.PREEMPTED, Cause.COMMUNICATION, Cause.STORAGE, Cause.BAD_NODE)

FORMS: Mapping[str, str] = {
    "stage": '{run: "causes.fail:main", reads: [failure]}',
    "command": '{command: "python -m causes.fail {config.failure}", reads: [failure]}',
    "script": '{command: "python -m causes.fail wrapped {config.failure}", reads: [failure]}',
}
SWEEP_FILE = """
config: {{failure: ""}}
axes: {{failure: [{names}]}}
stages: {{{form}: {stage}}}
"""
WAITING = """
config: {seed: 0, count: {num_steps: 600, checkpoint_every: 0, step_s: 0.5, fail: null}}
axes: {seed: "range(0,4)"}
stages: [count]
"""
ONCE = (
    "policy.retries={" + ", ".join(f"{cause}: 0" for cause in Cause) + "}",
    "policy.breaker=0",
    "policy.quarantine_s=0",
    "policy.lease_s=6",
)
"""No retry: the first cause that is recorded counts."""


class Found(NamedTuple):
    """One failure.

    Attributes:
        launcher: where it happened.
        form: of the program, or what was done from outside.
        name: of the program, or of the cell.
        truth: its cause.
        cause: what was recorded.
        reason: the line of `sweep status`.
        commit: of the rules.
    """

    launcher: str
    form: str
    name: str
    truth: str
    cause: str
    reason: str
    commit: str = ""


class Trial:
    """A sweep in a place.

    Args:
        place: an empty one.
        name: of the sweep.
        text: of its file.
    """

    def __init__(self, place: Place, name: str, text: str) -> None:
        self._place = place
        self._name = name
        self._folder = place.folder / "project"
        (self._folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        shutil.copytree(Path(__file__).parent / "causes", self._folder / "causes", dirs_exist_ok=True)
        bin_folder = Path(sys.executable).parent
        self._env = {**place.env, "PATH": f"{bin_folder}{os.pathsep}{place.env['PATH']}"}

    def launch(self, *words: str) -> subprocess.Popen[bytes]:
        """Start the launch."""
        with (self._place.folder / "launch.log").open("ab") as log:
            return subprocess.Popen(
                [*SWEEP, "launch", f"{self._name}.yaml", *self._place.words, *ONCE, *words],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def cells(self) -> list[dict[str, Any]]:
        """Return the cells, as `sweep status` prints them."""
        done = subprocess.run(
            [*SWEEP, "status", self._name, "--json"],
            cwd=self._folder,
            env=self._env,
            capture_output=True,
            text=True,
            check=False,
        )
        cells: list[dict[str, Any]] = json.loads(done.stdout)["cells"] if done.stdout.strip() else []
        return cells

    def running(self, number: int, timeout_s: float = 90) -> list[tuple[Path, dict[int, str]]]:
        """Wait until so many attempts run; return their folders and processes."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            found = [each for each in attempts(self._place.store) if not (each[0] / "end.json").exists()]
            if sum("stage" in pids.values() for _, pids in found) >= number:
                return found
            time.sleep(0.2)
        raise TimeoutError(f"{number} attempts do not run")

    def over(self, process: subprocess.Popen[bytes], timeout_s: float) -> None:
        """Wait for a launch, and end it when it takes longer."""
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wanted(launcher: str, *, is_quick: bool) -> list[tuple[str, str]]:
    """Return form and program of each failure: locally all, elsewhere each program in one form in turn.

    If it has to be quick, locally in one form too, and elsewhere only one program in three.
    """
    if launcher == "local" and not is_quick:
        return [(form, name) for form in FORMS for name in CAUSES]
    in_turn = [(tuple(FORMS)[number % len(FORMS)], name) for number, name in enumerate(CAUSES)]
    if launcher == "local" or not is_quick:
        return in_turn
    return [each for number, each in enumerate(in_turn) if number // len(FORMS) % len(FORMS) == 0]


def programs(launcher: str, places: Places, failures: Sequence[tuple[str, str]]) -> Iterator[Found]:
    """Yield what is recorded of each failure, a sweep at a time.

    Args:
        launcher: to run them on.
        places: to run in.
        failures: form and name of each.
    """
    commit = _commit()
    for form, stage in FORMS.items():
        own = [name for each, name in failures if each == form]
        # Workers leave a node on which two stages found the GPU broken, so these have a sweep each.
        alone = [name for name in own if CAUSES[name] is Cause.BAD_NODE]
        rest = [name for name in own if name not in alone]
        groups = [rest[at : at + GROUP] for at in range(0, len(rest), GROUP)] + [[name] for name in alone]
        if not groups:
            continue
        with places.place(launcher) as place:
            for number, names in enumerate(groups):
                text = SWEEP_FILE.format(names=", ".join(names), form=form, stage=stage)
                trial = Trial(place, f"{form}{number}", text)
                trial.over(trial.launch(f"policy.limits_s.{form}={LIMIT_S}", "policy.grace_s=1"), 900)
                for cell in trial.cells():
                    name = cell["axes"].get("failure", names[0])
                    if cell["state"] == "failed":  # others are tried again by the next run
                        cause, reason = str(cell["cause"]), cell["reason"].replace(f"{sys.prefix}/bin/", "")
                        yield Found(launcher, form, name, CAUSES[name], cause, reason, commit)


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip()


def _kill(running: Sequence[tuple[Path, Mapping[int, str]]]) -> None:
    for pid in [pid for _, pids in running for pid in pids]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_worker(place: Place, trial: Trial) -> None:
    """Kill a worker and its stage at once, as a node does that is lost."""
    _kill(trial.running(2))


def lose_node(place: Place, trial: Trial) -> None:
    """Lose each node on which a stage runs, with the stages."""
    running = trial.running(2)
    if place.testbed is not None:
        for name, state in place.testbed.node_states().items():
            if not state.startswith("idle"):
                place.testbed.lose(name)
        place.testbed.revive()
    elif place.cluster is not None:
        for name in [name for name in place.cluster.processes if name != "head"]:
            place.cluster.kill(name)
        _kill(running)  # workers outlive their actor, to save
        place.cluster.heal()


def cancel_jobs(place: Place, trial: Trial) -> None:
    """Cancel all jobs, as an administrator does."""
    assert place.testbed is not None
    trial.running(2)
    for task in place.testbed.job_states():
        place.testbed.run("scancel", task)


Kind = tuple[str, Cause, Callable[[Place, Trial], None]]
OUTSIDE: Mapping[str, tuple[Kind, ...]] = {
    "local": (("worker killed", Cause.NODE_LOST, kill_worker),),
    "slurm": (
        ("node lost", Cause.NODE_LOST, lose_node),
        ("jobs cancelled", Cause.CANCELLED, cancel_jobs),
    ),
    "ray": (("node lost", Cause.NODE_LOST, lose_node),),
}
"""Launcher to what is done to its jobs: name, cause, and how."""


def from_outside(launcher: str, places: Places, kinds: Sequence[Kind]) -> Iterator[Found]:
    """Yield what is recorded of cells whose jobs are hurt."""
    for what, cause, hurt in kinds:
        with places.place(launcher) as place:
            trial = Trial(place, "waiting", WAITING)
            process = trial.launch()
            hurt(place, trial)
            until_s = time.monotonic() + 150
            while time.monotonic() < until_s:
                failed = [cell for cell in trial.cells() if cell["state"] == "failed"]
                if len(failed) >= 2:
                    break
                time.sleep(1)
            trial.over(process, 1)
            for pid in processes(place):
                os.kill(pid, signal.SIGKILL)
            for cell in failed:
                yield Found(
                    launcher, what, cell["cell"], cause, str(cell["cause"]), cell["reason"], _commit()
                )


def page(found: Sequence[Found], first: Sequence[Found], option: str) -> str:
    """Return the page: figures and a confusion matrix for each launcher, and what was not right.

    Args:
        found: by the rules of today.
        first: of programs that had not been used to mend the rules.
        option: with which the first were made.
    """
    known = [each for each in found if each.truth != Cause.UNKNOWN]
    right = sum(each.truth == each.cause for each in known)
    unknown = sum(each.cause == Cause.UNKNOWN for each in known)
    blamed = [each for each in known if each.truth in OF_MACHINES and each.cause in OF_USERS]
    guessed = [each for each in found if each.truth == Cause.UNKNOWN != each.cause]
    runs = Counter(each.commit for each in found).most_common()
    commits = ", ".join(f"{number} at {commit}" for commit, number in runs)
    lines = [
        f"# Causes of failures\n\n{len(found)} failures of {len({each.truth for each in found})} causes, by",
        f"`python benchmarks/failure_causes.py {option}--report docs/failure-causes.md`, merged from runs:",
        f"{commits}. Each was judged by the rules of its commit, not by later ones.",
        "The programs of `benchmarks/causes/` fail as stage, as command, and in a script; the table shows in",
        "how many of these forms on each launcher. Jobs are also hurt from outside.",
        f"\n- right: **{right / len(known):.1%}** ({right} of {len(known)} whose cause can be known)",
        f"- `unknown`: {unknown / len(known):.1%}",
        f"- wrong: {(len(known) - right - unknown) / len(known):.1%}",
        f"- of machines, blamed on the user's config, data or code: {len(blamed)}",
        f"- whose cause nobody can know, and for which one was recorded: {len(guessed)}",
        "\n| launcher | programs | forms of each | failures whose cause can be known | right |",
        "|---|---:|---:|---:|---:|",
    ]
    for launcher in _launchers(found):
        own = [each for each in known if each.launcher == launcher]
        forms = Counter(each.name for each in found if each.launcher == launcher and each.form in FORMS)
        share = sum(each.truth == each.cause for each in own) / len(own)
        most = max(forms.values(), default=0)
        lines.append(f"| {launcher} | {len(forms)} | {most} | {len(own)} | {share:.1%} |")
    lines += [
        "",
        "The rules were written before all programs but the `seen`, then mended by what all showed but half",
        "of `authored`: these are *seen after the fact*. The middle column: first sight, locally; of the",
        "last four sets the rules alone, by `benchmarks/failure_offline.py`. `shapes`, `apart` are other",
        "languages and launchers; `reported`, `strangers` follow public reports. Another author wrote",
        "`authored`: 43.9 % right at first sight, 10 % wrong. After general mechanisms learnt from one half",
        "of it: 71.7 % of the other half right, 6.7 % wrong.",
        "",
        "| programs | right when the rules first met them | right today |",
        "|---|---:|---:|",
        *(f"| {part} | {_right(first, part)} | {_right(found, part)} |" for part in PARTS),
    ]
    for launcher in _launchers(found):
        lines += ["", f"## {launcher}", "", *_matrix([each for each in found if each.launcher == launcher])]
    wrong = [each for each in found if each.truth != each.cause]
    lines += ["", "## Not right", ""] if wrong else []
    lines += [
        f"- {each.launcher}, {each.form}, {each.name}: {each.truth}, but {each.cause}: {each.reason[:120]}"
        for each in wrong
    ]
    return "\n".join(lines) + "\n"


def _launchers(found: Sequence[Found]) -> list[str]:
    return [each for each in OUTSIDE if any(own.launcher == each for own in found)]


def _matrix(found: Sequence[Found]) -> Iterator[str]:
    counts = Counter((each.truth, each.cause) for each in found)
    columns = [cause for cause in Cause if any(each.cause == cause for each in found)]
    yield "| true \\ recorded | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for truth in [cause for cause in Cause if any(each.truth == cause for each in found)]:
        yield f"| {truth} | " + " | ".join(str(counts[truth, cause] or "") for cause in columns) + " |"


def _right(found: Sequence[Found], part: str) -> str:
    own = [each for each in found if PART_OF.get(each.name) == part and each.truth != Cause.UNKNOWN]
    wrong = sum(each.cause not in (each.truth, Cause.UNKNOWN) for each in own)
    right = f"{sum(each.truth == each.cause for each in own)} of {len(own)}" if own else ""
    return f"{right}, {wrong} wrong" if wrong else right


def _read(path: Path) -> list[Found]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Found) for line in lines]


def measure(launcher: str, places: Places, path: Path, parts: Sequence[str], *, is_quick: bool) -> None:
    """Measure what the results lack of a launcher, and append it, a failure at a time.

    Args:
        launcher: to run on.
        places: to run in.
        path: of the results.
        parts: modules of `benchmarks/causes/`.
        is_quick: fewer of them; see `wanted`.
    """
    known = {each[:3] for each in _read(path)}
    failures = [
        (form, name)
        for form, name in wanted(launcher, is_quick=is_quick)
        if PART_OF[name] in parts and (launcher, form, name) not in known
    ]
    hurt = [each for each in OUTSIDE[launcher] if (launcher, each[0]) not in {key[:2] for key in known}]
    for found in (programs(launcher, places, failures), from_outside(launcher, places, hurt)):
        for each in found:
            with path.open("ab") as stream:
                stream.write(msgspec.json.encode(each) + b"\n")


def main() -> int:
    """Fail everywhere, and print or write the page."""
    parser = argparse.ArgumentParser(description="How often the recorded cause of a failure is true.")
    parser.add_argument("--only", choices=tuple(OUTSIDE), nargs="+", default=tuple(OUTSIDE), help="launchers")
    parser.add_argument("--parts", choices=tuple(PARTS), nargs="+", default=tuple(PARTS), help="programs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="kept failures; missing ones are run")
    parser.add_argument("--quick", action="store_true", help="local: one form; elsewhere: a third of all")
    parser.add_argument("--report", type=Path, help="write the page here")
    args = parser.parse_args()
    places = Places()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clusters are ended then too
    try:
        for launcher in args.only:
            measure(launcher, places, args.results, args.parts, is_quick=args.quick)
    finally:
        places.close()
    text = page(_read(args.results), _read(FIRST), "--quick " if args.quick else "")
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
