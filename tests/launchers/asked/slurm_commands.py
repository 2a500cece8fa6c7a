"""What becomes of the answers of Slurm's commands, and how they are called, see ../replay.py."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable
from typing import Any

import msgspec

from orchestrator.jobs.judgement import JobListing
from orchestrator.jobs.submissions import asker
from orchestrator.launchers.slurm import query
from orchestrator.launchers.slurm import script as scripts
from orchestrator.launchers.slurm.launcher import SlurmLauncher, partitions
from orchestrator.launchers.slurm.settings import cluster_profile
from tests.launchers.asked.slurm_words import told
from tests.launchers.replay import CONFIG, DOWN, NONE, Replay, Said, replaying
from tests.launchers.test_slurm_words import SACCT, SQUEUE
from tests.recording import Answers, answer, plain
from tests.store.builders import submission_of

SUBMITTED = submission_of(
    7,
    name="s.7.ab",
    tasks=(("a",), ("b",)),
    at="2026-11-25T02:31:50Z",
    by="ann@login",
    uid=os.geteuid(),
    controller="head:6817",
)
OTHERS = msgspec.structs.replace(SUBMITTED, uid=os.geteuid() + 1, by="ben@login")
ELSEWHERE = msgspec.structs.replace(SUBMITTED, controller="another:6817")
PRIVATE = CONFIG.replace("none", "jobs,usage")
FAR = CONFIG.replace("= lab", "= far").replace("head", "farhead")


def seen(question: str, listing: JobListing) -> Answers:
    """What is known of a listing, and of each job in it."""
    yield question, {name: value for name, value in told(listing).items() if name != "seen"}
    for (job, index), found in sorted(listing.seen.items()):
        yield f"  {question}, {job}_{index}", told(found)


def _calls(asks: Callable[[Replay], Answers]) -> Answers:
    """Each answer with the command lines that led to it."""
    with replaying() as slurm:
        for question, found in asks(slurm):
            text = plain(found).replace(f"shows {asker().name} ", "shows USER ")
            lines = [line.replace(f"-u {asker().uid} ", "-u UID ") for line in slurm.command_lines()]
            yield question, " / ".join([text, *dict.fromkeys(lines)])


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
        yield from seen(name, query.jobs("lab", ["12", "9", "9"]))
    slurm.says(scontrol=[Said(CONFIG), Said(FAR)], squeue=Said("CLUSTER: far\n" + SQUEUE))
    yield from seen("another cluster", query.jobs("far", ["9"]))
    slurm.says(squeue=Said("CLUSTER: far\n" + SQUEUE))
    yield from seen("a title that was not asked for", query.jobs("lab", ["9"]))
    slurm.says()
    yield from seen("none", query.jobs("lab", []))
    slurm.says(squeue=NONE)
    found = query.jobs("lab", map(str, range(1000, 1501)))
    lines = [re.sub(r"1000,.*,", "1000,...,", line) for line in slurm.command_lines()]
    yield "many", (told(found), lines)


def listings() -> Answers:
    """What controller and accounting list of jobs."""
    return _calls(_listings)


def _found(slurm: Replay) -> Answers:
    cases: dict[str, dict[str, Any]] = {
        "by name": {"squeue": "12\n12\n9\n"},
        "by part of a name": {"squeue": [Said(""), Said("13|site_s.7.ab_x\n14|s.8.ab\nnone\n")]},
        "by accounting": {
            "squeue": [Said(""), Said(error="no user", code=1)],
            "sacct": "15_0\n15_1\n15_0.batch\n",
        },
        "nowhere": {},
        "nowhere, accounting down": {"sacct": Said("16\n", code=1)},
        "squeue down": {"squeue": DOWN},
        "private": {"scontrol": PRIVATE},
        "private and by name": {"scontrol": PRIVATE, "squeue": "12\n"},
    }
    wanted = {"own": SUBMITTED, "another's": OTHERS, "another controller's": ELSEWHERE}
    for (case, answers), (whose, submission) in itertools.product(cases.items(), wanted.items()):
        if whose != "own" and case in (
            "by part of a name",
            "by accounting",
            "nowhere, accounting down",
            "squeue down",
        ):
            continue
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
            "told": Said(told),
            "with a title": Said(f"CLUSTER: far\n{told}"),
            "down": DOWN,
        }.items():
            slurm.says(scontrol=config, squeue=said)
            yield f"waiting, {place}, {name}", scheduler.waiting(tasks)
        for name, said in {
            "well": Said(),
            "gone": NONE,
            "refused": Said(error="Access denied\n", code=1),
        }.items():
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
    policy = "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)"
    answers: dict[str, Said] = {
        "an id": Said("12\n"),
        "an id and this cluster": Said("12;lab\n"),
        "an id of another cluster": Said("12;far\n"),
        "an id beside other lines": Said("Welcome to lab\n12\nused: 5 hours\n"),
        "two ids": Said("12\n13\n"),
        "no id": Said("Submitted\n"),
        "an id and a failure": Said("12\n", code=1),
        "timed out": Said(
            error="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            code=1,
        ),
        "unreached": Said(
            error="sbatch: error: Unable to contact slurm controller (connect failure)",
            code=1,
        ),
        "a limit": Said(error=f"sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: {policy}", code=1),
        "hours": Said(error=f"sbatch: error: QOSMaxWallDurationPerJobLimit\nsbatch: error: {policy}", code=1),
        "refused": Said(
            error="sbatch: error: Batch job submission failed: Invalid node name specified", code=1
        ),
        "a site's word": Said(error="project p has no hours left " + "for " * 100, code=1),
    }
    lists = {"no list": Said(""), "listed": Said("12\n"), "down": DOWN}
    for (case, said), (list_name, listed) in itertools.product(answers.items(), lists.items()):
        if (
            case in ("two ids", "no id", "an id of another cluster", "a limit", "hours")
            and list_name != "no list"
        ):
            continue
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
    yield "no answer", answer(lambda: query.slurm("squeue", timeout_s=1.0))
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
    for names in (
        {},
        {"gpu": None, "cpu": None},
        {"gpu": given},
        {"gpu": given, "cpu": None},
        {"gpus": None},
        {"odd": None},
    ):
        profile = cluster_profile({"partitions": names})
        for place in ("", "far"):
            slurm.says(sinfo=SINFO, scontrol=[Said(CONFIG), Said(FAR)])
            yield (
                f"{sorted(names)} {place}",
                answer(
                    lambda p=profile, at=place: {
                        n: msgspec.structs.astuple(x) for n, x in partitions(p.partitions, at).items()
                    }
                ),
            )
    for profile in ({}, {"sbatch": {"clusters": "far"}}):
        launcher = SlurmLauncher({"max_running": 3, "max_jobs": 5, "cells_per_job": 2}, 1, profile)
        for dry_run, config in itertools.product((True, False), ([Said(CONFIG), Said(FAR)], [DOWN])):
            slurm.says(scontrol=config)
            yield (
                f"limits {profile} {dry_run}",
                answer(lambda of=launcher, dry=dry_run: of.limits(dry_run=dry)._asdict()),
            )
        yield (
            "of the launcher",
            (
                launcher.cells_per_job,
                launcher.max_running,
                launcher.max_jobs,
                launcher.settle_s,
                launcher.logs("s", 7),
            ),
        )
    yield "logs", SlurmLauncher({}, 1, {"logs": "/logs"}).logs("s", 7)


def sites() -> Answers:
    """What a launcher learns of a cluster before it submits."""
    return _calls(_sites)


ASKED: dict[str, Callable[[], Answers]] = {
    "clusters": clusters,
    "listings": listings,
    "found": found,
    "acts": acts,
    "submitted": submitted,
    "silent": silent,
    "sites": sites,
}
