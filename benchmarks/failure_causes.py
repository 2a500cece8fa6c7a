"""How often the recorded cause of a failure is the true one: failures of known causes, on three launchers.

Each program of `benchmarks/causes/` fails as a stage, as a command, and inside a script that starts
it: on this machine, on a real Slurm and on a real Ray. Beside them, jobs are hurt from outside. The truth is
in this file alone: neither the sweep nor the stages know it.

    python benchmarks/failure_causes.py --report docs/failure-causes.md
    python benchmarks/failure_causes.py --only local
"""

from __future__ import annotations

import argparse
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

from orchestrator.core.failure import Cause

SEEN: Mapping[Cause, tuple[str, ...]] = {
    Cause.CONFIG: ("missing_argument", "missing_value", "bad_interpolation", "no_such_model"),
    Cause.DATA: (
        *("no_such_file", "not_utf8", "not_json", "not_parquet", "truncated_weights", "truncated_gzip"),
        *("no_zip", "bad_csv"),
    ),
    Cause.CODE: (
        *("no_name", "no_attribute", "wrong_type", "wrong_index", "no_module", "assertion", "division"),
        *("endless_recursion", "shapes", "another_dtype"),
    ),
    Cause.OOM_GPU: ("gpu_memory", "gpu_memory_of_cublas", "gpu_memory_of_jax"),
    Cause.OOM_HOST: ("host_memory", "host_memory_of_numpy", "host_memory_of_torch"),
    Cause.NAN: ("loss_is_nan", "overflow", "anomaly"),
    Cause.TIMEOUT: ("hang",),
    Cause.COMMUNICATION: ("refused", "refused_url", "refused_httpx", "no_host", "no_rendezvous", "nccl"),
    Cause.STORAGE: ("full_disk", "full_disk_of_torch", "quota", "read_only", "input_output"),
    Cause.BAD_NODE: ("ecc", "lost_gpu", "driver"),
    Cause.UNKNOWN: ("only_a_code", "killed", "crash"),
}
UNSEEN: Mapping[Cause, tuple[str, ...]] = {
    Cause.CONFIG: ("bad_yaml", "http_404"),
    Cause.DATA: ("empty_dataset", "truncated_array", "no_pickle", "no_database", "no_xml"),
    Cause.CODE: ("no_key", "too_many_values", "freed_graph", "other_weights"),
    Cause.OOM_GPU: ("gpu_memory_of_vllm", "gpu_memory_of_amd"),
    Cause.OOM_HOST: ("no_fork", "host_memory_of_arrow"),
    Cause.NAN: ("nan_logits", "nan_loss"),
    Cause.COMMUNICATION: ("http_503", "no_tls", "no_answer", "gloo"),
    Cause.STORAGE: ("stale", "full_database"),
    Cause.BAD_NODE: ("nvlink", "nvml"),
    Cause.UNKNOWN: ("another_code",),
}
"""Cause to the programs that fail for it; nobody can know that of the last ones.

The rules of `orchestrator.core.failure` were mended by what the first ones showed, and not by the others.
"""

RESULTS = Path(__file__).parent / "causes/results.jsonl"
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
    """

    launcher: str
    form: str
    name: str
    truth: str
    cause: str
    reason: str


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


def programs(launcher: str, places: Places) -> Iterator[Found]:
    """Yield what is recorded of each program in each form."""
    causes = {name: cause for part in (SEEN, UNSEEN) for cause, names in part.items() for name in names}
    # Workers leave a node on which two stages found the GPU broken, so these have a sweep each.
    alone = [name for name, cause in causes.items() if cause is Cause.BAD_NODE]
    groups = [[name for name in causes if name not in alone], *([name] for name in alone)]
    for form, stage in FORMS.items():
        with places.place(launcher) as place:
            for number, names in enumerate(groups):
                text = SWEEP_FILE.format(names=", ".join(names), form=form, stage=stage)
                trial = Trial(place, f"{form}{number}", text)
                trial.over(trial.launch(f"policy.limits_s.{form}=20", "policy.grace_s=1"), 900)
                for cell in trial.cells():
                    name = cell["axes"].get("failure", names[0])
                    yield Found(launcher, form, name, causes[name], str(cell["cause"]), cell["reason"])


def kill_worker(place: Place, trial: Trial) -> None:
    """Kill a worker and its stage at once, as a node does that is lost."""
    for folder, pids in trial.running(2):
        del folder
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def lose_node(place: Place, trial: Trial) -> None:
    """Lose each node on which a stage runs."""
    trial.running(2)
    if place.testbed is not None:
        for name, state in place.testbed.node_states().items():
            if not state.startswith("idle"):
                place.testbed.lose(name)
        place.testbed.revive()
    elif place.cluster is not None:
        for name in [name for name in place.cluster.processes if name != "head"]:
            place.cluster.kill(name)
        place.cluster.heal()


def cancel_jobs(place: Place, trial: Trial) -> None:
    """Cancel all jobs, as an administrator does."""
    assert place.testbed is not None
    trial.running(2)
    for task in place.testbed.job_states():
        place.testbed.run("scancel", task)


OUTSIDE: Mapping[str, tuple[tuple[str, Cause, Callable[[Place, Trial], None]], ...]] = {
    "local": (("worker killed", Cause.NODE_LOST, kill_worker),),
    "slurm": (
        ("node lost", Cause.NODE_LOST, lose_node),
        ("jobs cancelled", Cause.CANCELLED, cancel_jobs),
    ),
    "ray": (("node lost", Cause.NODE_LOST, lose_node),),
}
"""Launcher to what is done to its jobs: name, cause, and how."""


def from_outside(launcher: str, places: Places) -> Iterator[Found]:
    """Yield what is recorded of cells whose jobs are hurt."""
    for what, cause, hurt in OUTSIDE[launcher]:
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
                yield Found(launcher, what, cell["cell"], cause, str(cell["cause"]), cell["reason"])


def page(found: Sequence[Found]) -> str:
    """Return the page: a confusion matrix, figures for each launcher, and what was wrong."""
    known = [each for each in found if each.truth != Cause.UNKNOWN]
    right = sum(each.truth == each.cause for each in known)
    unknown = sum(each.cause == Cause.UNKNOWN for each in known)
    blamed = [each for each in known if each.truth in OF_MACHINES and each.cause in OF_USERS]
    counts = Counter((each.truth, each.cause) for each in found)
    columns = [cause for cause in Cause if any(each.cause == cause for each in found)]
    lines = [
        "# Causes of failures",
        "",
        f"{len(found)} failures of {len({each.truth for each in found})} causes, by",
        "`python benchmarks/failure_causes.py --report docs/failure-causes.md`. Each program of",
        "`benchmarks/causes/` fails as a stage, as a command, and in a script that starts it.",
        "",
        f"- right: **{right / len(known):.1%}** ({right} of {len(known)} whose cause can be known)",
        f"- `unknown`: {unknown / len(known):.1%}",
        f"- wrong: {(len(known) - right - unknown) / len(known):.1%}",
        f"- of machines, blamed on the user's config, data or code: {len(blamed)}",
        f"- of programs that were not used to mend the rules: {_right(known, is_unseen=True)}",
        "",
        "| launcher | failures | right |",
        "|---|---:|---:|",
    ]
    for launcher in dict.fromkeys(each.launcher for each in known):
        own = [each for each in known if each.launcher == launcher]
        lines.append(f"| {launcher} | {len(own)} | {sum(e.truth == e.cause for e in own) / len(own):.1%} |")
    lines += ["", "| true \\ recorded | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for truth in [cause for cause in Cause if any(each.truth == cause for each in found)]:
        numbers = [str(counts[truth, cause] or "") for cause in columns]
        lines.append(f"| {truth} | " + " | ".join(numbers) + " |")
    wrong = [each for each in found if each.truth != each.cause]
    lines += ["", "Not right:", ""] if wrong else []
    lines += [
        f"- {each.launcher}, {each.form}, {each.name}: {each.truth}, but {each.cause}: {each.reason[:120]}"
        for each in wrong
    ]
    return "\n".join(lines) + "\n"


def _right(found: Sequence[Found], *, is_unseen: bool) -> str:
    names = {name for part in UNSEEN.values() for name in part}
    own = [each for each in found if (each.name in names) is is_unseen]
    return f"{sum(each.truth == each.cause for each in own)} of {len(own)} right"


def _read(path: Path) -> list[Found]:
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Found) for line in lines]


def main() -> int:
    """Fail everywhere, and print or write the page."""
    parser = argparse.ArgumentParser(description="How often the recorded cause of a failure is true.")
    parser.add_argument("--only", choices=tuple(OUTSIDE), help="one launcher, again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="kept failures, by launcher")
    parser.add_argument("--report", type=Path, help="write the page here")
    args = parser.parse_args()
    places, found = Places(), _read(args.results)
    known = {each.launcher for each in found}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clusters are ended then too
    try:
        for launcher in [args.only] if args.only else [name for name in OUTSIDE if name not in known]:
            own = [*programs(launcher, places), *from_outside(launcher, places)]
            found = [each for each in found if each.launcher != launcher] + own
            args.results.write_bytes(b"".join(msgspec.json.encode(each) + b"\n" for each in found))
    finally:
        places.close()
    text = page(found)
    if args.report:
        args.report.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
