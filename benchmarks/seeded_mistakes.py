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
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from mistakes.runs import (
    REPOSITORY,
    SWEEP,
    Run,
    failed_stages,
    kill_on_node1,
    on_full_disk,
    on_slurm,
    preempted,
)

HERE = Path(__file__).parent / "mistakes"
OFF = ("policy.rehearse=false", "policy.breaker=0", "policy.quarantine_s=0")
ON = ("policy.rehearse=true",)
STUDY_GPUS, STUDY_GPU_HOURS = 64, 1019.0  # what the study takes if nothing is rehearsed and nothing fails
GUARDED = ("train", "evaluate")
"""Stages that cost GPU-hours in the study; a failure of these is what must not reach a second class."""


class Mistake(NamedTuple):
    """A mistake, in the tiny sweep and in the study.

    Attributes:
        what: for people.
        axes: changes of the sweep file's axes: name to label to settings.
        words: overrides of the launch.
        faults: how it strikes the study: entries of a fault table, see docs/simulate.md.
        faults_on: how it strikes with everything on, where that is something else.
        hurt: runs the launch, if it takes more than a command; it returns the exit code.
        silent: axes of the cells whose results are wrong without any failure.
        is_real: whether it is run for real; else it strikes the study alone.
    """

    what: str
    axes: Mapping[str, Mapping[str, Mapping[str, Any]]] = {}
    words: tuple[str, ...] = ()
    faults: tuple[Mapping[str, Any], ...] = ()
    faults_on: tuple[Mapping[str, Any], ...] = ()
    hurt: Callable[[Run], int] | None = None
    silent: Mapping[str, str] = {}
    is_real: bool = True


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
LIMIT_S = 300.0  # after which `policy.limits_s` ends a hang of an evaluation in the study
REHEARSED_S = {"qwen3-0.6b": 66, "qwen3-1.7b": 105, "qwen3-8b": 325, "gemma3-1b": 79, "gemma3-4b": 178}
# Seconds of a rehearsal, by `sweep plan multilingual_220 --json`.


def at_scoring(cause: str, axes: Mapping[str, str]) -> tuple[Mapping[str, Any], ...]:
    """Return fault entries that strike at the end of rehearsals."""
    return tuple(
        found
        for model, seconds in REHEARSED_S.items()
        for found in strikes(cause, ["rehearse"], seconds, {"model": model, **axes})
    )


FULL, FULL_HOURS = "No space left on device", (4, 6)
"""When the store of the study is full for everybody: somebody makes room after two hours."""

GPUS = {"qwen3-8b": 4, "gemma3-4b": 2}
HUNG_GPU_HOURS = sum(GPUS.get(name, 1) * max(180, s / 2) for name, s in REHEARSED_S.items()) / 3600
"""What the rehearsals of one task hang, which the simulation does not know: it ends stages as planned."""

MISTAKES: Mapping[str, Mistake] = {
    "none": Mistake("none", is_real=False),
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
        faults=(
            *strikes("nan", ["rehearse"], LOADING_S + 30, {"model": "gemma3-4b"}),
            *strikes("nan", ["train"], LOADING_S + 60, {"model": "gemma3-4b"}),
        ),
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
        faults=({"name": FULL, "cause": "storage", "full_hours": FULL_HOURS},),
    ),
    "taken_disk": Mistake(
        "a full disk, of which others take at once what is deleted",
        faults=({"name": FULL, "cause": "storage", "full_hours": FULL_HOURS, "is_taken": True},),
        is_real=False,
    ),
    "killing_node": Mistake(
        "a node that kills every process",
        hurt=on_slurm(kill_on_node1),
        faults=({"name": "killed", "cause": "bad_node", "after_s": 60, "node": 0},),
    ),
    "wrong_package": Mistake(
        "another version of a package on one node",
        words=("cluster.setup=['[ $SLURMD_NODENAME != node1 ] || export PYTHONPATH=$PWD/wrong']",),
        hurt=on_slurm(lambda env: None),
        faults=({"name": "ImportError", "cause": "config", "after_s": 30, "node": 0},),
        faults_on=({"name": "other packages", "cause": "bad_node", "after_s": 30, "node": 0},),
    ),
    "preemption": Mistake("preemption every few seconds", hurt=preempted),
    "hang": Mistake(
        "a scorer that hangs",
        axes=of_task("HANGING"),
        words=("policy.limits_s={evaluate: 20}",),
        faults=(
            *at_scoring("code", {"task": "math"}),
            *strikes("timeout", ["evaluate"], LIMIT_S, {"task": "math"}, keeps=False),
        ),
    ),
    "crash": Mistake(
        "a crash of evaluation after training",
        axes=of_task("CRASHING"),
        faults=(
            *at_scoring("code", {"task": "math"}),
            *strikes("code", ["evaluate"], LOADING_S, {"task": "math"}, keeps=False),
        ),
    ),
    "swapped": Mistake(
        "the label column of another row",
        axes=of_task("SWAPPED"),
        faults=strikes("data", ["rehearse"], 30, {"task": "math"}),
        silent={"task": "math"},
    ),
}


def write(folder: Path, mistake: Mistake) -> None:
    """Write the sweep with a mistake into a folder: its file, module and config."""
    file = yaml.safe_load((HERE / "mistakes.yaml").read_text())
    file["axes"] |= mistake.axes
    (folder / "mistakes.yaml").write_text(yaml.safe_dump(file, sort_keys=False))
    shutil.copy(HERE / "broken.py", folder)
    # For the node whose environment differs: a package that is older than what the stages need.
    (folder / "wrong/safetensors").mkdir(parents=True)
    (folder / "wrong/safetensors/__init__.py").write_text("raise ImportError('safetensors 0.1 is too old')")
    (folder / "wrong/safetensors-0.1.dist-info").mkdir()
    (folder / "wrong/safetensors-0.1.dist-info/METADATA").write_text("Name: safetensors\nVersion: 0.1\n")
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
    failed = failed_stages(run)
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
    faults = mistake.faults_on if words == ON and mistake.faults_on else mistake.faults
    with tempfile.NamedTemporaryFile("w", suffix=".json") as table:
        json.dump({"source": mistake.what, "gpu_hours": 1, "faults": faults}, table)
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
    parts = found["goodput"]["gpu_hours"]
    is_hang = any(fault["cause"] == "timeout" for fault in faults) and words == ON
    wasted = {
        "lost": parts["lost"] + (HUNG_GPU_HOURS if is_hang else 0.0),
        "idle": parts["idle"],
        "restore": parts["restore"],
        "rehearsals": found["gate_gpu_hours"],
    }
    return {
        "wasted": wasted,
        "wasted_percent": 100 * sum(wasted.values()) / STUDY_GPU_HOURS,
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
    parser.add_argument("--modes", default="off,on", help="everything off, everything on")
    parser.add_argument("--no-real", action="store_true", help="the projection on the study alone")
    parser.add_argument("--out", type=Path, help="file for all results; rows that it holds are not run again")
    given = parser.parse_args(words)
    names = given.only.split(",") if given.only else list(MISTAKES)
    lines = given.out.read_text().splitlines() if given.out and given.out.exists() else []
    found = {(each["mistake"], each["mode"]) for each in map(json.loads, lines)}
    rows = [(name, mode) for name in names for mode in given.modes.split(",") if (name, mode) not in found]
    for line in results(rows, is_real=not given.no_real):
        text = json.dumps(line)
        print(text, flush=True)
        if given.out:
            with given.out.open("a") as stream:
                stream.write(text + "\n")
    return 0


def results(rows: Sequence[tuple[str, str]], *, is_real: bool) -> Iterator[dict[str, Any]]:
    """Yield a result for each mistake with everything off, or with everything on."""
    for name, mode in rows:
        mistake, settings = MISTAKES[name], ON if mode == "on" else OFF
        real = play(name, mistake, settings) if is_real and mistake.is_real else None
        is_projected = mistake.faults or mistake.hurt is preempted or name == "none"
        on_study = project(mistake, settings) if is_projected else None
        yield {
            "mistake": name,
            "what": mistake.what,
            "mode": mode,
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "load": os.getloadavg()[0],
            "real": real,
            "study": on_study,
        }


if __name__ == "__main__":
    sys.exit(main())
