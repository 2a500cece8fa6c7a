"""Twelve mistakes as users make them, each run for real on tiny models, and what they would cost the study.

Each is seeded into the sweep `benchmarks/mistakes/mistakes.yaml` and launched twice: with everything off (no
rehearsal, breaker or quarantine), and with everything on. Of the real run are taken the cells that were
hurt, the classes (model and task) in which a training or an evaluation failed, and which stages failed. A
fault table of the same mistake then strikes the study in `sweep simulate`, under the same settings.

    python benchmarks/seeded_mistakes.py --out mistakes.json --only swapped,hang

Two mistakes need a Slurm with two nodes (Debian's packages, root), one a file system of its own (root).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

HERE = Path(__file__).parent / "mistakes"
REPOSITORY = HERE.parents[1]
SWEEP = (sys.executable, "-P", "-m", "orchestrator.cli.main")
OFF = ("policy.rehearse=false", "policy.breaker=0", "policy.quarantine_s=0")
ON = ("policy.rehearse=true",)
STUDY_GPUS = 64
GUARDED = ("train", "evaluate")
"""Stages that cost GPU-hours in the study; a failure of these is what must not reach a second class."""


class Mistake(NamedTuple):
    """A mistake, in the tiny sweep and in the study.

    Attributes:
        what: for people.
        axes: changes of the sweep file's axes: name to label to settings.
        words: overrides of the launch.
        faults: how it strikes the study: entries of a fault table, see docs/simulate.md.
        hurt: runs the launch, if it takes more than a command; it returns the exit code.
        silent: axes of the cells whose results are wrong without any failure.
    """

    what: str
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}
    words: tuple[str, ...] = ()
    faults: tuple[Mapping[str, Any], ...] = ()
    hurt: Callable[[Run], int] | None = None
    silent: Mapping[str, str] = {}


class Run:
    """One launch of the sweep with a mistake.

    Args:
        folder: with the sweep file and its module.
        words: of the launch.

    Attributes:
        store: where it records.
        env: environment of its commands.
    """

    def __init__(self, folder: Path, words: Sequence[str]) -> None:
        self.folder, self.words, self.store = folder, tuple(words), folder / "store"
        self.env = {**os.environ, "SWEEP_STORE": str(self.store), "PYTHONPATH": str(REPOSITORY)}

    def launch(self, *words: str, timeout_s: float | None = None) -> int:
        """Launch; return the exit code. After a time limit the launch is asked to stop, as by a scheduler."""
        with (self.folder / "launch.log").open("ab") as log:
            process = subprocess.Popen(
                [*SWEEP, "launch", "mistakes.yaml", "launcher.workers=2", *self.words, *words],
                cwd=self.folder,
                env=self.env,
                stdout=log,
                stderr=log,
            )
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                return process.wait()

    def json(self, *words: str) -> Any:
        """Return what a verb prints with ``--json``; None if it printed an error."""
        done = subprocess.run(
            [*SWEEP, *words, "--json"],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        return json.loads(done.stdout) if done.stdout.strip() else None


def preempted(run: Run) -> int:
    """Stop the launch every 4 seconds, and start it again, until all is done."""
    for _ in range(60):
        if (code := run.launch(timeout_s=4)) == 0:
            return code
    return 1


def on_full_disk(run: Run) -> int:
    """Launch into a file system that is too small; then enlarge it, and launch again."""
    run.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", run.store], check=True)
    try:
        run.launch()
        # The next launch mends these failures.
        (run.folder / "before.json").write_text(json.dumps(failed_stages(run)))
        subprocess.run(["mount", "-o", "remount,size=200m", run.store], check=True)
        code = run.launch()
        kept = run.folder / "kept"
        shutil.copytree(run.store, kept, symlinks=True)
    finally:
        subprocess.run(["umount", "-l", run.store], check=True)
    run.store.rmdir()
    kept.rename(run.store)
    return code


def on_slurm(hurt: Callable[[Mapping[str, str]], object]) -> Callable[[Run], int]:
    """Return a launch on a Slurm of two nodes, the first of which is hurt again and again."""

    def launch(run: Run) -> int:
        sys.path.insert(0, str(REPOSITORY))
        from tests.slurm.testbed import Testbed

        testbed = Testbed.start(Path(tempfile.mkdtemp(prefix="mistakes.", dir="/tmp")), nodes=2)
        try:
            run.env |= testbed.env
            run.words = (
                *(word for word in run.words if not word.startswith("launcher.workers")),
                *("launcher=slurm", "cluster=testbed", "cluster.memory_gib=2", "launcher.bad_node_hours=0"),
            )
            done = subprocess.run(
                [*SWEEP, "launch", "mistakes.yaml", *run.words], cwd=run.folder, env=run.env, check=False
            )
            until_s = time.monotonic() + 600
            while done.returncode == 0 and time.monotonic() < until_s:
                hurt(testbed.env)
                subprocess.run(
                    [*SWEEP, "reconcile", "mistakes"],
                    cwd=run.folder,
                    env=run.env,
                    capture_output=True,
                    check=False,
                )
                counts = (run.json("status", "mistakes") or {}).get("counts", {})
                if not {"pending", "queued", "running", "released", "lost"} & {
                    s for s in counts if counts[s]
                }:
                    break
                time.sleep(1)
            return done.returncode
        finally:
            testbed.stop()

    return launch


def kill_on_node1(env: Mapping[str, str]) -> None:
    """Kill each child of a worker that runs on the first node."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes()
            conf = f"SLURM_CONF={env['SLURM_CONF']}".encode()
            if b"SLURMD_NODENAME=node1" in variables and conf in variables and b"python" in command:
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue


def of_task(target: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Return axes whose task `math` is one of `broken.py`, see `write`."""
    return {"task": {"math": {"task": target}, "api_calling": {"task": "api_calling"}}}


def of_model(**settings: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """Return axes whose second model has these settings."""
    changed = {"model": "tiny-gemma3-s"} | {key.replace("__", "."): value for key, value in settings.items()}
    return {"model": {"tiny-qwen3-s": {"model": "tiny-qwen3-s"}, "tiny-gemma3-s": changed}}


def strikes(
    cause: str, stages: Sequence[str], after_s: float, axes: Mapping[str, str], **more: Any
) -> tuple[Mapping[str, Any], ...]:
    """Return fault entries that strike these stages of these cells after some seconds."""
    return tuple(
        {"name": cause, "cause": cause, "stage": stage, "axes": dict(axes), "after_s": after_s, **more}
        for stage in stages
    )


LOADING_S = 120.0  # in which a stage of the study has loaded its model; what breaks at step 1 breaks then
LIMIT_S = 300.0  # after which `policy.limits_s` ends a hang in the study

MISTAKES: Mapping[str, Mistake] = {
    "typo": Mistake("typo in a config key", words=("trainer.lerning_rate=1e-3",)),
    "bad_row": Mistake(
        "a row without an answer in one language",
        axes=of_task("BAD_ROW"),
        faults=strikes("data", ["prepare"], 60, {"task": "math", "mixture": "en+es"}),
    ),
    "oom_first": Mistake(
        "out of memory at step 1",
        axes=of_model(trainer__cpu_limit_tokens=200),
        faults=strikes("oom_gpu", ["rehearse", "train"], LOADING_S, {"model": "gemma3-4b"}, cured_at=1),
    ),
    "oom_longest": Mistake(
        "out of memory at the longest batch alone",
        axes=of_model(trainer__cpu_limit_tokens=620),
        faults=(
            *strikes("oom_gpu", ["rehearse"], LOADING_S, {"model": "gemma3-4b"}, cured_at=1),
            *strikes("oom_gpu", ["train"], 3600, {"model": "gemma3-4b"}, cured_at=1),
        ),
    ),
    "nan": Mistake(
        "a learning rate at which the loss is not finite",
        axes=of_model(trainer__learning_rate=1e30, trainer__max_grad_norm=1e30),
        faults=strikes("nan", ["rehearse", "train"], LOADING_S + 60, {"model": "gemma3-4b"}),
    ),
    "no_model": Mistake(
        "a model whose files are missing",
        axes={
            "model": {
                "tiny-qwen3-s": {"model": "tiny-qwen3-s"},
                "lost": {"model": "custom", "model.name": "lost", "model.path": "/nowhere/model"},
            }
        },
    ),
    "full_disk": Mistake(
        "a full disk",
        hurt=on_full_disk,
        faults=strikes("storage", ["train"], 3600, {"model": "qwen3-8b"}),
    ),
    "killing_node": Mistake(
        "a node that kills every process",
        hurt=on_slurm(kill_on_node1),
        faults=({"name": "killed", "cause": "bad_node", "after_s": 60, "node": 0},),
    ),
    "preemption": Mistake("preemption every few seconds", hurt=preempted),
    "hang": Mistake(
        "a scorer that hangs",
        axes=of_task("HANGING"),
        words=("policy.limits_s={evaluate: 20, rehearse: 60}",),
        faults=strikes("timeout", ["rehearse", "evaluate"], LIMIT_S, {"task": "math"}),
    ),
    "crash": Mistake(
        "a crash of evaluation after training",
        axes=of_task("CRASHING"),
        faults=strikes("code", ["rehearse", "evaluate"], LOADING_S, {"task": "math"}),
    ),
    "swapped": Mistake(
        "the label column of another row",
        axes=of_task("SWAPPED"),
        faults=strikes("data", ["rehearse"], 30, {"task": "math"}),
        silent={"task": "math"},
    ),
}


def failed_stages(run: Run) -> list[dict[str, Any]]:
    """Return each failed attempt: its stage, cell, cause and seconds."""
    found = []
    for path in run.store.glob("records/*/*/*/end.json"):
        end = json.loads(path.read_text())
        if end["outcome"] == "failed":
            claim = json.loads((path.parent / "claim.json").read_text())
            stage = path.relative_to(run.store).parts[1]
            found.append({"stage": stage, "cell": claim["cell"], "cause": end["cause"], "s": end["seconds"]})
    return found


def write(folder: Path, mistake: Mistake) -> None:
    """Write the sweep with a mistake into a folder: its file, module and config."""
    file = yaml.safe_load((HERE / "mistakes.yaml").read_text())
    file["axes"] |= mistake.axes
    (folder / "mistakes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    shutil.copy(HERE / "broken.py", folder)
    tasks = folder / "conf/task"
    tasks.mkdir(parents=True)
    for target in ("BAD_ROW", "SWAPPED", "CRASHING", "HANGING"):
        (tasks / f"{target}.yaml").write_text(f"name: math\ntarget: broken:{target}\n")


def play(name: str, mistake: Mistake, words: Sequence[str]) -> dict[str, Any]:
    """Run a mistake for real; return what it did."""
    folder = Path(tempfile.mkdtemp(prefix=f"mistake-{name}-"))
    write(folder, mistake)
    run = Run(folder, (*mistake.words, *words))
    start_s = time.monotonic()
    code = mistake.hurt(run) if mistake.hurt else run.launch()
    seconds = time.monotonic() - start_s
    status = run.json("status", "mistakes") or {}
    (spent, *_) = (run.json("status", "mistakes", "--spent") or {}).get("spent") or [{}]
    before = folder / "before.json"
    failed = failed_stages(run) + (json.loads(before.read_text()) if before.exists() else [])
    axes = {cell["cell"]: cell["axes"] for cell in status.get("cells", ())}
    hurt = [each for each in failed if each["stage"] in GUARDED]
    classes = {
        (axes[each["cell"]]["model"], axes[each["cell"]]["task"]) for each in hurt if each["cell"] in axes
    }
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "exit_code": code,
        "seconds": round(seconds, 1),
        "counts": status.get("counts", {}),
        "failed_attempts": dict(Counter(each["stage"] for each in failed)),
        "causes": dict(Counter(each["cause"] for each in failed)),
        "cells_hurt": len({each["cell"] for each in hurt}),
        "classes_hurt": len(classes),
        "cells_wrong": sum(
            bool(mistake.silent) and mistake.silent.items() <= cell["axes"].items()
            for cell in status.get("cells", ())
            if cell["state"] == "done"
        ),
        "held_s": spent.get("total", 0.0),
        "lost_s": spent.get("parts", {}).get("lost", 0.0),
    }


def project(mistake: Mistake, words: Sequence[str]) -> dict[str, Any]:
    """Let the mistake strike the study; return the GPU-hours that it wastes, with those of rehearsals."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as table:
        json.dump({"source": mistake.what, "gpu_hours": 1, "faults": mistake.faults}, table)
        table.flush()
        done = subprocess.run(
            [
                *SWEEP,
                "simulate",
                "multilingual_220",
                "--gpus",
                str(STUDY_GPUS),
                "--json",
                "--failures",
                table.name,
                *(["--preempt-every", "4h"] if mistake.hurt is preempted else []),
                *words,
            ],
            cwd=REPOSITORY,
            env={**os.environ, "SWEEP_STORE": "/nowhere/store"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        return {"error": done.stderr.strip()[-300:]}
    found = json.loads(done.stdout)
    return {
        "goodput": found["goodput"],
        "waste": found["waste"],
        "cells": found["cells"],
        "attempts": found["attempts"],
        "hours": found["makespan"]["hours"],
    }


def main(words: Sequence[str] | None = None) -> int:
    """Play the mistakes, and print a line of JSON each and a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="names, with commas")
    parser.add_argument("--out", type=Path, help="file for all results, as JSON lines")
    given = parser.parse_args(words)
    names = given.only.split(",") if given.only else list(MISTAKES)
    for line in results(names):
        text = json.dumps(line)
        print(text, flush=True)
        if given.out:
            with given.out.open("a") as stream:
                stream.write(text + "\n")
    return 0


def results(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a result for each mistake with everything off, and with everything on."""
    for name in names:
        mistake = MISTAKES[name]
        for mode, settings in (("off", OFF), ("on", ON)):
            real = play(name, mistake, settings)
            on_study = project(mistake, settings) if mistake.faults or mistake.hurt is preempted else None
            yield {"mistake": name, "what": mistake.what, "mode": mode, "real": real, "study": on_study}


if __name__ == "__main__":
    sys.exit(main())
