"""What becomes of Slurm's answers, and how its commands are called, is as recorded, see ../replay.py."""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.selector import Subject
from orchestrator.costs import Estimate
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import JobListing, SubmissionState
from orchestrator.jobs.records import Accepted, JobEnd, JobExitReport, Resources, Shortfalls, Submission
from orchestrator.launchers.slurm import parsing, query, reasons, settings
from orchestrator.launchers.slurm import script as scripts
from orchestrator.launchers.slurm.launcher import SlurmLauncher, bad_nodes, explained, partitions
from orchestrator.launchers.slurm.options import (
    cluster_name,
    ignored_variables,
    long_name,
    minutes,
    options,
    unexpanded,
)
from orchestrator.launchers.slurm.settings import cluster_profile, describe, resources_of, slurm_settings
from tests.core.recording import Answers, answer
from tests.launchers.replay import CONFIG, DOWN, NONE, Replay, Said, replaying
from tests.launchers.test_slurm_words import SACCT, SQUEUE
from tests.store.builders import submission_of

SUBMITTED = submission_of(
    7, name="s.7.ab", tasks=(("a",), ("b",)), at="2026-11-25T02:31:50Z", by="ann@login", uid=0, controller="head:6817"
)
OTHERS = msgspec.structs.replace(SUBMITTED, uid=12345, by="ben@login")
ELSEWHERE = msgspec.structs.replace(SUBMITTED, controller="another:6817")
PRIVATE = CONFIG.replace("none", "jobs,usage")
FAR = CONFIG.replace("= lab", "= far").replace("head", "farhead")


def seen(listing: JobListing) -> object:
    """A listing, each job without what is usual."""
    jobs = {f"{job}_{index}": _usual(found) for (job, index), found in sorted(listing.seen.items())}
    return {**_without_defaults(listing), "seen": jobs}


def _without_defaults(found: Any) -> dict[str, Any]:
    return {
        name: str(value) if isinstance(value, str) else value
        for name, value in found._asdict().items()
        if value != found._field_defaults.get(name, None)
    }


def _usual(found: Any) -> dict[str, Any]:
    return _without_defaults(found)


def _calls(asks: Callable[[Replay], Answers]) -> Answers:
    """Each answer with the command lines that led to it."""
    with replaying() as slurm:
        for question, found in asks(slurm):
            lines = [line.replace(str(os.geteuid()), "UID") if "-u" in line else line for line in slurm.command_lines()]
            yield question, (found, *lines)


def _clusters(slurm: Replay) -> Answers:
    configs: dict[str, list[Said]] = {
        "usual": [Said(CONFIG)],
        "private": [Said(PRIVATE)],
        "nothing of privacy or arrays": [Said(CONFIG.replace("PrivateData", "Other").replace("1001", "n/a"))],
        "arrays of none": [Said(CONFIG.replace("1001", "0"))],
        "no name": [Said("Configuration data\n")],
        "down": [DOWN],
        "another": [Said(CONFIG), Said(FAR)],
        "another in its place": [Said(CONFIG), Said(CONFIG.replace("= lab", "= third"))],
        "another is down": [Said(CONFIG), DOWN],
        "another is silent": [Said(CONFIG), Said(code=3)],
    }
    for (config, answers), name in itertools.product(configs.items(), ("", "LAB", "Far")):
        slurm.says(scontrol=answers)
        yield f"{config}, {name or 'here'}", answer(lambda name=name: query.cluster(name)._asdict())
    slurm.says()
    yield "limits", query.limits("lab")._asdict()


def clusters() -> Answers:
    """Which cluster answers, and with which limits."""
    return _calls(_clusters)


def _listings(slurm: Replay) -> Answers:
    queued, sacct = Said(SQUEUE), Said(SACCT)
    odd = Said("site: welcome\n" + SQUEUE)
    failed = Said(error="sacct: error: slurm_persist_conn_open_without_init: failed to open\n\n", code=1)
    cases: dict[str, dict[str, Any]] = {
        "both": {"squeue": queued, "sacct": sacct},
        "no squeue": {"squeue": DOWN, "sacct": sacct},
        "no sacct": {"squeue": queued, "sacct": failed},
        "neither": {"squeue": DOWN, "sacct": failed},
        "none queued": {"squeue": NONE, "sacct": sacct},
        "squeue with a line of the site": {"squeue": odd, "sacct": Said("")},
        "squeue with lines of the site alone": {"squeue": Said("site: welcome\n"), "sacct": Said("")},
        "no config": {"squeue": queued, "sacct": sacct, "scontrol": DOWN},
        "private": {"squeue": NONE, "sacct": Said(""), "scontrol": PRIVATE},
    }
    for name, answers in cases.items():
        slurm.says(**answers)
        yield name, seen(query.jobs("lab", ["12", "9", "9"]))
    slurm.says(scontrol=[Said(CONFIG), Said(FAR)], squeue=Said("CLUSTER: far\n" + SQUEUE))
    yield "another cluster", seen(query.jobs("far", ["9"]))
    slurm.says(squeue=Said("CLUSTER: far\n" + SQUEUE))
    yield "a title that was not asked for", seen(query.jobs("lab", ["9"]))
    slurm.says()
    yield "none", seen(query.jobs("lab", []))
    slurm.says(squeue=NONE)
    found = query.jobs("lab", map(str, range(1000, 1501)))
    lines = [re.sub(r"1000,.*,", "1000,...,", line) for line in slurm.command_lines()]
    yield "many", (seen(found), lines)


def listings() -> Answers:
    """What controller and accounting list of jobs."""
    return _calls(_listings)


def _found(slurm: Replay) -> Answers:
    cases: dict[str, dict[str, Any]] = {
        "by name": {"squeue": "12\n12\n9\n"},
        "by part of a name": {"squeue": [Said(""), Said("13|site_s.7.ab_x\n14|s.8.ab\nnone\n")]},
        "by accounting": {"squeue": [Said(""), Said(error="no user", code=1)], "sacct": "15_0\n15_1\n15_0.batch\n"},
        "nowhere": {},
        "nowhere, accounting down": {"sacct": Said("16\n", code=1)},
        "squeue down": {"squeue": DOWN},
        "private": {"scontrol": PRIVATE},
        "private and by name": {"scontrol": PRIVATE, "squeue": "12\n"},
    }
    wanted = {"own": SUBMITTED, "another's": OTHERS, "another controller's": ELSEWHERE}
    for (case, answers), (whose, submission) in itertools.product(cases.items(), wanted.items()):
        slurm.says(**answers)
        yield f"{case}, {whose}", answer(lambda of=submission: query.find(of))
    far = msgspec.structs.replace(SUBMITTED, cluster="far", controller="farhead:6817")
    slurm.says(scontrol=[Said(CONFIG), Said(FAR)], squeue="CLUSTER: far\n12\n")
    yield "another cluster", answer(lambda: query.find(far))


def found() -> Answers:
    """The job of a submission by its name."""
    return _calls(_found)


def _acts(slurm: Replay) -> Answers:
    tasks = ("12_0", "12_3")
    far = [Said(CONFIG), Said(FAR)]
    for place, config in (("lab", [Said(CONFIG)]), ("far", far)):
        scheduler = query.SlurmScheduler(place)
        told = "12_0|Priority|2026-11-25T04:00:00\n 12_3 |Resources |N/A\n12_4|(Dependency)|\nodd\n"
        for name, said in {
            "told": Said(told), "with a title": Said(f"CLUSTER: far\n{told}"), "down": DOWN
        }.items():  # fmt: skip
            slurm.says(scontrol=config, squeue=said)
            yield f"waiting, {place}, {name}", scheduler.waiting(tasks)
        for name, said in {"well": Said(), "gone": NONE, "refused": Said(error="Access denied\n", code=1)}.items():
            slurm.says(scontrol=[*config, said], scancel=said)
            yield f"cancel, {place}, {name}", answer(lambda of=scheduler: of.cancel(SUBMITTED, tasks))
            slurm.says(scontrol=[*config, said])
            yield f"release, {place}, {name}", answer(lambda of=scheduler: of.release(tasks))
    slurm.says(scontrol=DOWN)
    yield "waiting, no config", query.SlurmScheduler("lab").waiting(tasks)


def acts() -> Answers:
    """Why tasks wait, and how they are cancelled and released."""
    return _calls(_acts)


def _outcome(found: Any) -> object:
    return {"verdict": str(found.verdict), "job": found.job, "message": found.message}


def _submitted(slurm: Replay) -> Answers:
    policy = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    answers: dict[str, Said] = {
        "an id": Said("12\n"),
        "an id and this cluster": Said("12;lab\n"),
        "an id of another cluster": Said("12;far\n"),
        "an id beside other lines": Said("Welcome to lab\n12\nused: 5 hours\n"),
        "two ids": Said("12\n13\n"),
        "no id": Said("Submitted\n"),
        "an id and a failure": Said("12\n", code=1),
        "timed out": Said(error="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", code=1),
        "unreached": Said(
            error="sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", code=1
        ),
        "a limit": Said(error=f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: {policy}", code=1),
        "hours": Said(error=f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: {policy}", code=1),
        "refused": Said(error="sbatch: error: Batch job submission failed: Invalid node name specified", code=1),
        "a site's word": Said(error="project p has no hours left " + "x" * 400, code=1),
    }
    lists = {"no list": Said(""), "listed": Said("12\n"), "down": DOWN}
    for (case, said), (list_name, listed) in itertools.product(answers.items(), lists.items()):
        slurm.says(sbatch=said._replace(last='cat >"$REPLAY/asked.text"'), squeue=listed)
        yield f"{case}, {list_name}", _outcome(scripts.submit("#!/bin/bash\nexit\n", SUBMITTED))
    for case, said in {"not cancelled": Said(error="Access denied", code=1), "cancelled": Said()}.items():
        slurm.says(sbatch="12;far\n", scancel=said)
        yield f"another cluster, {case}", _outcome(scripts.submit("", SUBMITTED))
    os.environ["PATH"] = "/nowhere"
    yield "no sbatch", _outcome(scripts.submit("", SUBMITTED))


def submitted() -> Answers:
    """What becomes of a submission by the words of sbatch."""
    pause, scripts._LOOK_S = scripts._LOOK_S, 0.0
    try:
        yield from _calls(_submitted)
    finally:
        scripts._LOOK_S = pause


def _silent(slurm: Replay) -> Answers:
    slurm.says(squeue=Said(last="exec sleep 9"))
    yield "no answer", answer(lambda: query.slurm("squeue", timeout_s=0.1))
    yield "a moment later", answer(lambda: query.asked("squeue"))
    query._silent_until_s.clear()
    slurm.says(squeue=Said("one\n", "a\n\n b \n", 4))
    result = query.slurm("squeue", "--x")
    yield "failed", (result._asdict(), result.problem, result._replace(error=" \n").problem)
    yield "failed where it must not", answer(lambda: query.asked("squeue", "--x"))
    slurm.says(squeue=Said(last="cat"))
    yield "a text", query.slurm("squeue", text="ä\n").output
    yield "no text", query.slurm("squeue").output
    os.environ["PATH"] = "/nowhere"
    yield "not there", answer(lambda: query.asked("squeue"))
    variables = {"SQUEUE_SORT": "x", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/", "MY_SLURM_X": "1"}
    yield "variables", query.environment(variables)


def silent() -> Answers:
    """Commands that fail or do not answer."""
    return _calls(_silent)


SINFO = """\
gpu|gpu:a100:4(S:0-1)|64|512000+|2-00:00:00
gpu|gpu:a100:8(S:0-1),lscratch:9|32+|256000|2-00:00:00
cpu|(null)|128|1024000|infinite
odd|(null)|128
"""


def _sites(slurm: Replay) -> Answers:
    given = {"gpus_per_node": 1, "cpus_per_node": 2, "memory_gib": 3.0, "max_hours": 4.0}
    for names in ({}, {"gpu": None, "cpu": None}, {"gpu": given}, {"gpu": given, "cpu": None}, {"gpus": None}, {"odd": None}):
        profile = cluster_profile({"partitions": names})
        for place in ("", "far"):
            slurm.says(sinfo=SINFO, scontrol=[Said(CONFIG), Said(FAR)])
            yield f"{sorted(names)} {place}", answer(
                lambda p=profile, at=place: {n: msgspec.structs.astuple(x) for n, x in partitions(p.partitions, at).items()}
            )
    for profile in ({}, {"sbatch": {"clusters": "far"}}):
        launcher = SlurmLauncher({"max_running": 3, "max_jobs": 5, "cells_per_job": 2}, 1, profile)
        for dry_run, config in itertools.product((True, False), ([Said(CONFIG), Said(FAR)], [DOWN])):
            slurm.says(scontrol=config)
            yield f"limits {profile} {dry_run}", answer(lambda of=launcher, dry=dry_run: of.limits(dry_run=dry)._asdict())
        yield "of the launcher", (
            launcher.cells_per_job, launcher.max_running, launcher.max_jobs, launcher.settle_s, launcher.logs("s", 7)
        )  # fmt: skip
    yield "logs", SlurmLauncher({}, 1, {"logs": "/logs"}).logs("s", 7)


def sites() -> Answers:
    """What a launcher learns of a cluster before it submits."""
    return _calls(_sites)


# Without Slurm


def observed() -> Answers:
    """What each line of accounting and of the controller means, and both together."""
    accounts, now = parsing.read_sacct(SACCT.splitlines()), parsing.read_squeue(SQUEUE.splitlines())
    states = [*parsing._WAITING, *parsing._LIVE, *parsing._OVER, "REVOKED"]
    for state in sorted(states):
        yield f"phase {state}", str(parsing.phase_of(state))
    for task, job in sorted(accounts.items()):
        yield f"accounting {task}", _usual(job._replace(submitted_s=None))
    for task, job in sorted(now.items()):
        yield f"controller {task}", _usual(job._replace(submitted_s=None))
    line = "9|0|{}|{}|2026-11-25T02:44:28|node1|{}|0:03|256|2026-11-25T02:31:50|s.1.ab|with a line"
    for word, reason, restarts in itertools.product(
        ("PENDING", "COMPLETING", "CANCELLED", "TIMEOUT"), ("Priority", "launch failed requeued held", "PartitionTimeLimit"), ("0", "4", "x")
    ):  # fmt: skip
        (job,) = parsing.read_squeue([line.format(word, reason, restarts)]).values()
        yield f"controller {word} {reason} {restarts}", _usual(job._replace(submitted_s=None))
    account = "9_0|{}|1:0|node1|{}|Unknown|{}|None|2026-11-25T02:31:50|s.1.ab"
    for old, new, restarts in itertools.product(
        ("", "RUNNING", "PREEMPTED", "REQUEUED", "FAILED", "NODE_FAIL", "CANCELLED by 0", "CANCELLED by 12345"),
        ("", "PENDING", "RUNNING", "COMPLETED", "CANCELLED", "NEW"),
        ("0", "2"),
    ):
        one = parsing.read_sacct([account.format(old, "2026-11-25T02:44:28", "5")] if old else [])
        two = parsing.read_squeue([line.format(new, "None", restarts)] if new else [])
        for name, listed in (("", two), ("no answer ", None)):
            if listed is None and (new or restarts == "2"):
                continue
            both = parsing.agreed(listed, one).get(("9", 0))
            yield f"{name}{old or 'no account'}, {new or 'not listed'} {restarts}", both and _usual(
                both._replace(submitted_s=None)
            )
    (mine,) = now.items() if len(now) == 1 else list(now.items())[:1]
    for renamed, again in itertools.product((False, True), repeat=2):
        job = mine[1]._replace(name="x" if renamed else mine[1].name, submitted_s=1.0 if again else mine[1].submitted_s)
        yield f"reused {renamed} {again}", _usual(
            parsing.agreed({mine[0]: job}, accounts)[mine[0]]._replace(submitted_s=None)
        )
    for code in ("0:0", "1:0", "0:9", "0:53", "75:0", "78:0", "77", "x:0", "4:9"):
        for word in ("FAILED", "COMPLETED", "CANCELLED", "TIMEOUT"):
            yield f"end {word} {code}", parsing.over_of(3, word, code, node="n", restarts=2, seconds=5.0)
    for name in ("12_3", "12_[0-4%2]", "12_[0,3-9:3]", "12", "12_3.batch", "12_[]"):
        yield f"tasks {name}", parsing.tasks_of(name)
    for text in ("4:42", "1:02:03", "2-03:04:05", "2-3", "UNLIMITED", ""):
        yield f"seconds {text}", parsing.seconds_of(text)
    for status in ("0", "256", "9", "1033", "4:0", "x"):
        yield f"status {status}", parsing._exit_code(status)


REASONS = (
    "QOSMaxWallDurationPerJobLimit AssocMaxCpuMinutesPerJobLimit QOSMaxGRESMinutesPerJob QOSMaxMemoryPerJob QOSMaxGRESPerJob "
    "QOSMaxCpuPerJobLimit MaxCPUsPerNode QOSMaxNodePerJobLimit PartitionNodeLimit PartitionMinNodes QOSMinGRES QOSMaxBillingPerJob "
    "QOSResourceLimit InvalidAccount PartitionConfig BadConstraints ReservationDeleted DependencyNeverSatisfied JobHoldMaxRequeue "
    "launch_failed_requeued_held QOSMaxCpuPerUserLimit AssocGrpMemLimit QOSMaxJobsPerUserLimit Priority"
).split()
MESSAGES = (
    "Requested time limit is invalid", "Memory specification can not be satisfied", "CPU count per node can not be satisfied",
    "Node count specification invalid", "Invalid account", "Access/permission denied", "Requested partition configuration not available now",
    "Invalid feature specification", "Requested node configuration is not available", "Requested reservation is invalid",
    "Invalid Trackable RESource (TRES) specification", "Invalid node name specified", "Job dependency problem", "Invalid license specification",
    "unrecognized option '--x'", "Job violates accounting/QOS policy", "Required node not available (down, drained or reserved)", "other",
)  # fmt: skip


def advised() -> Answers:
    """What reasons and refusals advise."""
    for reason in REASONS:
        yield reason, (
            reasons.never(f"({reason}, x)"), reasons.is_limit(f"error: {reason} Job violates accounting/QOS policy"),
            reasons.refusal_advice(f"sbatch: {reason}"), [reasons.may_release(reason, n) for n in (None, 3, 4)],
        )  # fmt: skip
    for message in MESSAGES:
        yield message, (reasons.is_limit(message), reasons.refusal_advice(message))


PROFILES: dict[str, dict[str, Any]] = {
    "usual": {},
    "all": {
        "account": "lab/a", "qos": "high", "constraint": "a100&nvlink", "reservation": "night", "exclusive": True, "gpu_type": "a100",
        "setup": ["module load cuda", "source 'my env'/activate"], "srun": ["--container-image=a b"], "python": "/opt/python", "scratch": "$TMP/x`y",
        "cache": "/cache \"$USER\"", "environment": {"A": "a b", "B": True, "C": 1.5, "D": None, "E": "x\ny\\'"}, "signal_s": 300,
        "sbatch": {"mail-user": "me", "gres": "lscratch:9", "exclude": "node1", "hold": True},
    },
    "other options": {"gpu_option": "gpus-per-node", "sbatch": {"signal": None, "open_mode": False, "c": 7, "requeue": None, "tres-per-task": "gres/gpu:1"}},
    "of alternatives": {"sbatch": {"mem-per-cpu": "2G", "ntasks": 1, "no-requeue": True, "tres-per-task": "cpu:4", "gres": "gpu:h100:1"}},
}  # fmt: skip
ASKED_FOR = {
    "small": submission_of(7, name="s.7.ab", tasks=(("a",),), folder="/work"),
    "large": submission_of(
        8, name="s.8.cd", tasks=(("a", "b"), ("c",), ("d",)), folder="/my work", exclude=("node7", "node9"), max_running=2,
        resources=Resources(num_nodes=2, gpus_per_node=4, cpus=32, memory_gib=12.3, hours=1.51, partition="gpu", signal_s=200),
        after=("5_0", "5_1"), after_s=61.0,
    ),
}  # fmt: skip


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
    places = {"store": "/store", "code": Path("/code"), "logs": Path("/logs")}
    for change in (
        {"store": "/a\nb"}, {"code": Path("/a\tb")}, {"code": Path("/a:b")}, {"logs": Path("/a\\b")}, {"logs": Path("/a\rb")}
    ):  # fmt: skip
        yield f"{change}", answer(
            lambda to=change: scripts.script(SUBMITTED, cluster_profile({}), sweep="s", **{**places, **to})
        )
    for folder in ("/a\\b", "/a\nb"):
        given = msgspec.structs.replace(SUBMITTED, folder=folder)
        yield f"{folder!r}", answer(lambda of=given: scripts.script(of, cluster_profile({}), sweep="s", **places))
    yield "python", answer(lambda: scripts.script(SUBMITTED, msgspec.structs.replace(cluster_profile({}), python="a\nb"), sweep="s", **places))


def chosen_options() -> Answers:
    """Options of sbatch by profile."""
    for option in ("c", "--cpus_per_task", "mem", "job", "part", "node", "exclu", "cpus", "x1", "workdir", "Q", "z", "gpus-per-t"):
        yield f"name {option}", answer(lambda of=option: long_name(of))
    for sbatch in (
        {"array": "1"}, {"time": 5}, {"time": None}, {"signal": False}, {"mem": 1, "--mem": 2}, {"comment": "a\nb"}, {"comment": " "}, {"a b": 1},
        {"clusters": "a,b"}, {"clusters": "far"}, {"M": False}, {"exclude": None}, {"gres": "shard:1"}, {"G": 0}, {"oversubscribe": True},
    ):  # fmt: skip
        for size, submission in ASKED_FOR.items():
            profile = cluster_profile({"sbatch": sbatch})
            yield f"{sbatch} {size}", answer(
                lambda p=profile, of=submission: options(of, p, output="/log") | {"cluster": cluster_name(p)}
            )
    variables = {
        **{f"SBATCH_{n}": "x" for n in ("ACCOUNT", "EXCLUSIVE", "TIMELIMIT", "GRES", "NO_REQUEUE", "OUTPUT", "MAIL_USER", "DEBUG", "PARTITION")},
        "SLURM_CLUSTERS": "far", "SLURM_GPUS": "2", "SLURM_HINT": "h", "SALLOC_QOS": "q", "SLURM_X": "y", "SBATCH_MEM_PER_CPU": "", "PATH": "/bin",
    }  # fmt: skip
    for name, profile in {
        "none": {}, "account": {"account": "y", "partitions": {"p": None}}, "sbatch": {"sbatch": {"gres": "y", "exclusive": False}}
    }.items():  # fmt: skip
        yield f"ignored, {name}", list(ignored_variables(variables, cluster_profile(profile)))
    yield "ignored in a job", list(ignored_variables({**variables, "SLURM_JOB_ID": "1"}, cluster_profile({})))
    yield "unexpanded", list(
        unexpanded(cluster_profile({"environment": {"A": "${HOME}/x", "B": "$5", "C": 1, "D": "a$B"}}))
    )
    yield "minutes", [minutes(hours) for hours in (0.0, 0.01, 1.0, 1.001)]


def requests_of_jobs() -> Answers:
    """What a job requests by plan, settings and profile."""
    estimates = {
        "none": None,
        "small": Estimate(num_gpus=0, wall_hours=0.1, host_memory_gib=3.0),
        "large": Estimate(num_gpus=12, wall_hours=9.0, host_memory_gib=400.0, stop_s=300.0),
    }
    places = {"gpu": {"gpus_per_node": 8, "cpus_per_node": 96, "memory_gib": 2000.0, "max_hours": 24.0},
              "long": {"gpus_per_node": 8, "cpus_per_node": 64, "memory_gib": 500.0}, "cpu": {"gpus_per_node": 0, "max_hours": 2.0}}  # fmt: skip
    profiles: dict[str, dict[str, Any]] = {
        "usual": {}, "cpu": {"device": "cpu", "cpus": 3, "memory_gib": 5.0}, "short": {"max_hours": 2.0, "min_hours": 1.0}, "places": {"partitions": places},
    }  # fmt: skip
    asked: dict[str, dict[str, Any]] = {
        "": {}, "much": {"gpus": 16, "nodes": 2, "cpus": 70, "memory_gib": 900.0}, "hours": {"hours": 3.0}, "there": {"partition": "long"},
        "elsewhere": {"partition": "x"}, "nodes": {"nodes": 1, "gpus": 16},
    }  # fmt: skip
    for (e, estimate), (p, profile), (a, wishes) in itertools.product(estimates.items(), profiles.items(), asked.items()):
        for more, (oom, late, per_job, side) in {"": (0, 0, 1, 1), "again": (2, 1, 5, 2)}.items():
            launcher = SlurmLauncher({"cells_per_job": per_job, "workers_per_job": side, "resources": [{"only": "", **wishes}]}, 1, profile)
            subject = Subject({"seed": "0"}, {}, {}, cell="c")
            found = answer(
                lambda of=launcher, s=subject, e=estimate, o=oom, n=late: [
                    (cell, describe(r), r) for cell, r in of.resources([(s, e, Shortfalls(o, n))], known=[s], chosen={"c": 4})
                ]
            )
            yield f"{e}, {p}, {a}, {more}", found
    for profile in ({}, {"device": "cpu"}, {"device": "cpu", "memory_gib": 4.0, "cpus": 2, "max_nodes": 3}, {"gpus_per_node": 0}, {"max_nodes": 2}):
        for most in (None, 16):
            launcher = SlurmLauncher({"max_gpus": most}, 1, profile)
            yield f"hardware {profile} {most}", (launcher.hardware(), answer(lambda of=launcher: of.gpus()))


REFUSED_SETTINGS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"workers": 3}, {}), ({"cells_per_job": 0}, {}), ({"workers_per_job": 2}, {}), ({"time_margin": 0.5}, {}), ({"resources": [{"gpu": 1}]}, {}),
    ({}, {"device": "a10"}), ({}, {"setup": ["  #SBATCH --x"]}), ({}, {"environment": {"A B": "x"}}), ({}, {"environment": {"A": "x\0"}}), ({}, {"logs": "logs"}),
    ({}, {"hours": 0}), ({}, {"account": "a b"}), ({}, {"partitions": {"a b": None}}), ({}, {"constraint": "a\nb"}), ({}, {"srun": ["a", ""]}),
    ({}, {"min_hours": 9.0, "max_hours": 2.0}), ({}, {"gpu_option": "x"}), ({}, {"scratch": "a\nb"}), ({}, {"cache": ""}), ({}, {"sbatch": {"array": 1}}),
)  # fmt: skip


def refused_settings() -> Answers:
    """Settings and profiles that make no sense."""
    for launcher, profile in REFUSED_SETTINGS:
        yield f"{launcher} {profile}", answer(lambda a=launcher, b=profile: SlurmLauncher(a, 1, b).settle_s)
    yield "of a selector", answer(
        lambda: SlurmLauncher({"resources": [{"only": "seed=9", "gpus": 1}]}, 1).resources(
            [(Subject({"seed": "0"}, {}, {}, cell="c"), None, Shortfalls())],
            known=[Subject({"seed": "0"}, {}, {}, cell="c")], chosen={},
        )
    )  # fmt: skip


LOGS = {
    "memory": "x\nslurmstepd: error: Detected 1 oom-kill event(s)\n", "setup": "sweep: line 2 of cluster.setup failed with exit code 1: module load x\nmore\n",
    "python": "2026-11-26T06:51:33Z job: s submission 1 task 0, start 0\nsrun: error: no such file\n\nsrun: error: node1: task 0: Exited with exit code 1\n",
    "bash": "/var/spool/slurm_script: line 12: X: unbound variable\n", "nothing": "", "long": "y" * 5000,
}  # fmt: skip


def explanations() -> Answers:
    """The ends of jobs, completed by their logs."""
    with tempfile.TemporaryDirectory() as folder:
        for (name, text), word, code, report in itertools.product(
            LOGS.items(), ("FAILED", "CANCELLED", "TIMEOUT"), ("1:0", "78:0", "4:0"), (None, 0, 1)
        ):
            (Path(folder) / "0.log").write_text(text)
            reports = {} if report is None else {0: JobExitReport(code=1, why="it says so", restart=report)}
            filed = SubmissionState(SUBMITTED, Accepted(nonce="n", job="12"), {}, reports)
            over = parsing.over_of(0, word, code)
            found = SlurmLauncher({}, 1).explain(filed, over, Path(folder))
            yield f"{name}, {word}, {code}, {report}", found
        missing = parsing.over_of(0, "FAILED", "1:0")
        yield "no log", explained(filed, missing, Path(folder) / "1.log")


def left_out() -> Answers:
    """Nodes on which jobs end early, too often for chance."""
    ends: dict[str, JobEnd] = {
        "idle": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=600.0, idle=True),
        "slow": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=601.0, idle=True),
        "killed": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="x: exit code 137"),
        "signal": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="signal 9"),
        "memory": JobEnd(index=0, word="FAILED", cause=Cause.OOM_HOST, node="n1", seconds=5.0, detail="signal 9"),
        "busy": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="n1", seconds=5.0, detail="exit code 1"),
        "good": JobEnd(index=0, word="COMPLETED", node="n1", seconds=5.0),
        "nowhere": JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, seconds=5.0, idle=True),
    }  # fmt: skip
    for names in [*((n,) * 2 for n in ends), ("idle",), ("idle", "killed", "good"), ("idle", "idle", "good", "good")]:
        filed = [
            SubmissionState(submission_of(number), Accepted(nonce="n", job="1"), {0: ends[name]}, {})
            for number, name in enumerate(names)
        ]
        yield f"{names}", [list(bad_nodes(filed, recent, fast_s=600.0)) for recent in (range(9), range(1))]


ASKED: dict[str, Callable[[], Answers]] = {
    "clusters": clusters, "listings": listings, "found": found, "acts": acts, "submitted": submitted, "silent": silent, "sites": sites,
    "observed": observed, "advised": advised, "batch_scripts": batch_scripts, "chosen_options": chosen_options, "requests_of_jobs": requests_of_jobs,
    "refused_settings": refused_settings, "explanations": explanations, "left_out": left_out,
}  # fmt: skip
