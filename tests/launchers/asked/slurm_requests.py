"""What Slurm is asked for: scripts, options and resources of jobs are as recorded."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.selector import Subject
from orchestrator.costs import Estimate
from orchestrator.jobs.records import Resources, Shortfalls
from orchestrator.launchers.slurm import script as scripts
from orchestrator.launchers.slurm.launcher import SlurmLauncher
from orchestrator.launchers.slurm.options import (
    cluster_name,
    ignored_variables,
    long_name,
    minutes,
    options,
    unexpanded,
)
from orchestrator.launchers.slurm.settings import cluster_profile, describe
from tests.recording import Answers, answer
from tests.store.builders import submission_of

PROFILES: dict[str, dict[str, Any]] = {
    "usual": {},
    "all": {
        "account": "lab/a",
        "qos": "high",
        "constraint": "a100&nvlink",
        "reservation": "night",
        "exclusive": True,
        "gpu_type": "a100",
        "setup": ["module load cuda", "source 'my env'/activate"],
        "srun": ["--container-image=a b"],
        "python": "/opt/python",
        "scratch": "$TMP/x`y",
        "cache": '/cache "$USER"',
        "environment": {"A": "a b", "B": True, "C": 1.5, "D": None, "E": "x\ny\\'"},
        "signal_s": 300,
        "sbatch": {"mail-user": "me", "gres": "lscratch:9", "exclude": "node1", "hold": True},
    },
    "other options": {
        "gpu_option": "gpus-per-node",
        "sbatch": {
            "signal": None,
            "open_mode": False,
            "c": 7,
            "requeue": None,
            "tres-per-task": "gres/gpu:1",
        },
    },
    "of alternatives": {
        "sbatch": {
            "mem-per-cpu": "2G",
            "ntasks": 1,
            "no-requeue": True,
            "tres-per-task": "cpu:4",
            "gres": "gpu:h100:1",
        }
    },
}
ASKED_FOR = {
    "small": submission_of(7, name="s.7.ab", tasks=(("a",),), folder="/work"),
    "large": submission_of(
        8,
        name="s.8.cd",
        tasks=(("a", "b"), ("c",), ("d",)),
        folder="/my work",
        exclude=("node7", "node9"),
        max_running=2,
        resources=Resources(
            num_nodes=2, gpus_per_node=4, cpus=32, memory_gib=12.3, hours=1.51, partition="gpu", signal_s=200
        ),
        after=("5_0", "5_1"),
        after_s=61.0,
    ),
}


def batch_scripts() -> Answers:
    """The script that sbatch receives, line by line."""
    for (name, profile), (size, submission) in itertools.product(PROFILES.items(), ASKED_FOR.items()):
        text = answer(
            lambda p=profile, of=submission: SlurmLauncher({}, 1, p).text(
                of, sweep="s", store="/store", code=Path("/store/code/0"), logs=Path("/store/10% logs")
            )
        )
        for line in str(text).replace(sys.executable, "PYTHON").splitlines():
            yield f"{name}, {size}", line
    places: dict[str, Any] = {"store": "/store", "code": Path("/code"), "logs": Path("/logs")}
    for change in (
        {"store": "/a\nb"},
        {"code": Path("/a\tb")},
        {"code": Path("/a:b")},
        {"logs": Path("/a\\b")},
        {"logs": Path("/a\rb")},
    ):
        yield (
            f"{change}",
            answer(
                lambda to=change: scripts.script(
                    ASKED_FOR["small"], cluster_profile({}), sweep="s", **{**places, **to}
                )
            ),
        )
    for folder in ("/a\\b", "/a\nb"):
        given = msgspec.structs.replace(ASKED_FOR["small"], folder=folder)
        yield (
            f"{folder!r}",
            answer(lambda of=given: scripts.script(of, cluster_profile({}), sweep="s", **places)),
        )
    yield (
        "python",
        answer(
            lambda: scripts.script(
                ASKED_FOR["small"],
                msgspec.structs.replace(cluster_profile({}), python="a\nb"),
                sweep="s",
                **places,
            )
        ),
    )


def chosen_options() -> Answers:
    """Options of sbatch by profile."""
    for option in (
        "c",
        "--cpus_per_task",
        "mem",
        "job",
        "part",
        "node",
        "exclu",
        "cpus",
        "x1",
        "workdir",
        "Q",
        "z",
        "gpus-per-t",
    ):
        yield f"name {option}", answer(lambda of=option: long_name(of))
    for sbatch in (
        {"array": "1"},
        {"time": 5},
        {"time": None},
        {"signal": False},
        {"mem": 1, "--mem": 2},
        {"comment": "a\nb"},
        {"comment": " "},
        {"a b": 1},
        {"clusters": "a,b"},
        {"clusters": "far"},
        {"M": False},
        {"exclude": None},
        {"gres": "shard:1"},
        {"G": 0},
        {"oversubscribe": True},
    ):
        for size, submission in ASKED_FOR.items():
            profile = cluster_profile({"sbatch": sbatch})
            yield (
                f"{sbatch} {size}",
                answer(
                    lambda p=profile, of=submission: (
                        options(of, p, output="/log") | {"cluster": cluster_name(p)}
                    )
                ),
            )
    variables = {
        **{
            f"SBATCH_{n}": "x"
            for n in (
                "ACCOUNT",
                "EXCLUSIVE",
                "TIMELIMIT",
                "GRES",
                "NO_REQUEUE",
                "OUTPUT",
                "MAIL_USER",
                "DEBUG",
                "PARTITION",
            )
        },
        "SLURM_CLUSTERS": "far",
        "SLURM_GPUS": "2",
        "SLURM_HINT": "h",
        "SALLOC_QOS": "q",
        "SLURM_X": "y",
        "SBATCH_MEM_PER_CPU": "",
        "PATH": "/bin",
    }
    for name, profile in {
        "none": {},
        "account": {"account": "y", "partitions": {"p": None}},
        "sbatch": {"sbatch": {"gres": "y", "exclusive": False}},
    }.items():
        yield f"ignored, {name}", list(ignored_variables(variables, cluster_profile(profile)))
    yield "ignored in a job", list(ignored_variables({**variables, "SLURM_JOB_ID": "1"}, cluster_profile({})))
    yield (
        "unexpanded",
        list(unexpanded(cluster_profile({"environment": {"A": "${HOME}/x", "B": "$5", "C": 1, "D": "a$B"}}))),
    )
    yield "minutes", [minutes(hours) for hours in (0.0, 0.01, 1.0, 1.001)]


def requests_of_jobs() -> Answers:
    """What a job requests by plan, settings and profile."""
    estimates = {
        "none": None,
        "small": Estimate(num_gpus=0, wall_hours=0.1, host_memory_gib=3.0),
        "large": Estimate(num_gpus=12, wall_hours=9.0, host_memory_gib=400.0, stop_s=300.0),
    }
    places = {
        "gpu": {"gpus_per_node": 8, "cpus_per_node": 96, "memory_gib": 2000.0, "max_hours": 24.0},
        "long": {"gpus_per_node": 8, "cpus_per_node": 64, "memory_gib": 500.0},
        "cpu": {"gpus_per_node": 0, "max_hours": 2.0},
    }
    profiles: dict[str, dict[str, Any]] = {
        "usual": {},
        "cpu": {"device": "cpu", "cpus": 3, "memory_gib": 5.0},
        "short": {"max_hours": 2.0, "min_hours": 1.0},
        "places": {"partitions": places},
    }
    asked: dict[str, dict[str, Any]] = {
        "": {},
        "much": {"gpus": 16, "nodes": 2, "cpus": 70, "memory_gib": 900.0},
        "hours": {"hours": 3.0},
        "there": {"partition": "long"},
        "elsewhere": {"partition": "x"},
        "nodes": {"nodes": 1, "gpus": 16},
    }
    for (e, estimate), (p, profile), (a, wishes) in itertools.product(
        estimates.items(), profiles.items(), asked.items()
    ):
        for more, (oom, late, per_job, side) in {"": (0, 0, 1, 1), "again": (2, 1, 5, 2)}.items():
            launcher = SlurmLauncher(
                {"cells_per_job": per_job, "workers_per_job": side, "resources": [{"only": "", **wishes}]},
                1,
                profile,
            )
            subject = Subject({"seed": "0"}, {}, {}, cell="c")
            found = answer(
                lambda of=launcher, s=subject, e=estimate, o=oom, n=late: [
                    (cell, describe(r), r)
                    for cell, r in of.resources([(s, e, Shortfalls(o, n))], known=[s], chosen={"c": 4})
                ]
            )
            yield f"{e}, {p}, {a}, {more}", found
    for profile in (
        {},
        {"device": "cpu"},
        {"device": "cpu", "memory_gib": 4.0, "cpus": 2, "max_nodes": 3},
        {"gpus_per_node": 0},
        {"max_nodes": 2},
    ):
        for most in (None, 16):
            launcher = SlurmLauncher({"max_gpus": most}, 1, profile)
            yield f"hardware {profile} {most}", (launcher.hardware(), answer(lambda of=launcher: of.gpus()))


REFUSED_SETTINGS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"workers": 3}, {}),
    ({"cells_per_job": 0}, {}),
    ({"workers_per_job": 2}, {}),
    ({"time_margin": 0.5}, {}),
    ({"resources": [{"gpu": 1}]}, {}),
    ({}, {"device": "a10"}),
    ({}, {"setup": ["  #SBATCH --x"]}),
    ({}, {"environment": {"A B": "x"}}),
    ({}, {"environment": {"A": "x\0"}}),
    ({}, {"logs": "logs"}),
    ({}, {"logs": "$HOME/logs"}),
    ({}, {"hours": 0}),
    ({}, {"account": "a b"}),
    ({}, {"partitions": {"a b": None}}),
    ({}, {"constraint": "a\nb"}),
    ({}, {"srun": ["a", ""]}),
    ({}, {"min_hours": 9.0, "max_hours": 2.0}),
    ({}, {"gpu_option": "x"}),
    ({}, {"scratch": "a\nb"}),
    ({}, {"cache": ""}),
    ({}, {"sbatch": {"array": 1}}),
)


def refused_settings() -> Answers:
    """Settings and profiles that make no sense."""
    for launcher, profile in REFUSED_SETTINGS:
        yield f"{launcher} {profile}", answer(lambda a=launcher, b=profile: SlurmLauncher(a, 1, b).settle_s)
    yield (
        "of a selector",
        answer(
            lambda: SlurmLauncher({"resources": [{"only": "seed=9", "gpus": 1}]}, 1).resources(
                [(Subject({"seed": "0"}, {}, {}, cell="c"), None, Shortfalls())],
                known=[Subject({"seed": "0"}, {}, {}, cell="c")],
                chosen={},
            )
        ),
    )


ASKED: dict[str, Callable[[], Answers]] = {
    "batch_scripts": batch_scripts,
    "chosen_options": chosen_options,
    "requests_of_jobs": requests_of_jobs,
    "refused_settings": refused_settings,
}
