"""What the jobs of schedulers do on their nodes, run as processes here, is as recorded."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.records import Request
from orchestrator.jobs.records import DriverStatus, JobEnd, JobExitReport, LostSlot, Resources
from orchestrator.jobs.submissions import DriverRecords, Submissions, gone_of, request_of
from orchestrator.launchers.ray import boot
from orchestrator.launchers.ray import worker as ray_worker
from orchestrator.launchers.slurm import job as slurm_job
from orchestrator.store import code as snapshots
from orchestrator.store.ledger import open_ledger
from tests import forked
from tests.execution.waiting import until
from tests.recording import Answers, answer, plain
from tests.store.builders import seal, settings, submission_of, sweep_of
from tests.stored import records, shortened, told

SWEEP = "counts"


class Place:
    """A store with one submission, and the processes of its tasks."""

    def __init__(
        self, folder: Path, launcher: Mapping[str, Any], cluster: Mapping[str, Any], **more: Any
    ) -> None:
        if at := more.pop("place", ""):
            more["cluster"] = at
        self.folder, self.store = folder, folder / "store"
        self.store.parent.mkdir(parents=True)
        self.sweep = sweep_of(3, **more.pop("count", {}))
        seal(self.store, self.sweep)
        self.ledger = open_ledger(str(self.store))
        run = msgspec.structs.replace(settings(), launcher=dict(launcher), cluster=dict(cluster))
        request = Request(
            nonce="n",
            number=1,
            verb="launch",
            revision=1,
            settings=run,
            import_paths=(str(folder),),
            folder="/work",
        )
        self.ledger.objects.put(f"sweeps/{SWEEP}/requests/000001.json", self.ledger.encode(request))
        usual = {"tasks": (("seed0",), ("seed1", "seed2")), "resources": Resources(cpus=2, hours=0.5)}
        self.submission = submission_of(**{**usual, "launcher": launcher["name"], **more})
        self.submissions = Submissions(self.ledger, SWEEP)
        assert self.submissions.file(self.submission)

    def run(self, module: str, *words: str, stop_at: str = "", **environment: str) -> list[str]:
        """Runs a module for the submission; returns its exit code and what it printed.

        Once it has printed `stop_at`, it is sent SIGTERM.
        """
        streams = [os.open(self.folder / "output", os.O_RDWR | os.O_CREAT | os.O_TRUNC)] * 2
        process = forked.Started(
            f"orchestrator.launchers.{module}",
            [str(self.store), SWEEP, *words],
            env={**os.environ, **environment},
            streams=streams,
            leads=True,
        )
        if stop_at:
            until(lambda: stop_at in (self.folder / "output").read_text())
            process.terminate()
        code = process.wait(60)
        os.close(streams[0])
        return [f"exit code {code}", *self.plain((self.folder / "output").read_text()).splitlines()]

    def plain(self, text: str) -> str:
        """A text without what differs from run to run."""
        for old, new in ((str(self.store), "STORE"), (str(self.folder), "FOLDER"), (platform.node(), "HOST")):
            text = text.replace(old, new)
        return re.sub(r"\b\d+\.\d s\b", "N.N s", shortened(text))

    def records(self) -> list[str]:
        """What the store holds beside the sweep and its request."""
        left_out = (
            r"^(store|sweeps/counts/(\d|requests|submissions/\d+.json)|payload)|heartbeat|workers/|/phases"
        )
        left_out += "|manifest|spec.json|start.json"
        return [self.plain(line) for line in records(self.store, leave_out=left_out)]


def lines_of(question: str, lines: list[str]) -> Answers:
    """Each line as an answer."""
    for number, line in enumerate(lines):
        yield f"{question}, line {number + 1}", line


NOW = {
    "SLURM_ARRAY_JOB_ID": "12",
    "SLURM_ARRAY_TASK_ID": "0",
    "SLURM_CLUSTER_NAME": "LAB",
    "SLURMD_NODENAME": "n1",
}


def slurm_jobs() -> Answers:
    """Tasks of an array that know their times and need no command of Slurm, from start to exit report."""
    with tempfile.TemporaryDirectory() as folder:
        now_s = time.time()
        variables = {
            **NOW,
            "SLURM_JOB_START_TIME": str(int(now_s)),
            "SLURM_JOB_END_TIME": str(now_s + 1800),
            "SWEEP_SCRATCH": f"{folder}/scratch",
            "PATH": f"{folder}/no/commands",
        }
        for name, task, launcher in (
            ("closed", "0", {}),
            ("no such task", "2", {}),
            ("two at once", "1", {"cells_per_job": 2, "workers_per_job": 2}),
        ):
            place = Place(Path(folder) / name, {"name": "slurm", **launcher}, {})
            if name == "closed":
                place.submissions.close(1, [JobEnd(index=0, word="LOST", detail="it is gone")], at="TIME")
            lines = place.run("slurm.job", "1", **{**variables, "SLURM_ARRAY_TASK_ID": task})
            # Which of two workers takes which cell is a matter of luck.
            found = [re.sub(r"slot: \d", "slot: N", line) for line in [*lines, *place.records()]]
            yield from lines_of(name, found)


def assignments() -> Answers:
    """What workers of Ray are given, and what jobs of Slurm report in the end."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "slurm", {"name": "slurm"}, {})
        place.submissions.accept(1, "12", at="2026-11-25T02:31:50Z")
        for array, cluster, code in itertools.product(
            ("12", "13", "67108864"), ("LAB", "far", ""), (0, 4, 76)
        ):
            here = slurm_job.JobPlace({**NOW, "SLURM_ARRAY_JOB_ID": array, "SLURM_CLUSTER_NAME": cluster})
            folder_of_reports = place.store / f"sweeps/{SWEEP}/submissions/000001/reports"
            shutil.rmtree(folder_of_reports, ignore_errors=True)
            slurm_job.SlurmJob(place.ledger, SWEEP, place.submission, here)._report(code)
            yield f"report {array} {cluster} {code}", place.records()[-1:]
        for device in (None, "cpu"):
            launcher = {"name": "ray", "device": device, "idle_s": 7.0}
            resources = Resources(
                gpus_per_node=0.5, cpus=1, accelerator="H100", rungs=((Cause.OOM_HOST, 0, 1),)
            )
            place = Place(
                Path(folder) / f"ray {device}", launcher, {}, resources=resources, place="http://head"
            )
            for accepted in (False, True):
                order = ray_worker.order_of(place.ledger, SWEEP, place.submission, 4, 2)
                text = told(msgspec.to_builtins(msgspec.structs.replace(order, settings=settings())))
                yield f"ray {device} {accepted}", place.plain(text)
                place.submissions.accept(1, "job-1", at="2026-11-25T02:31:50Z")


def ray_workers() -> Answers:
    """Workers that actors start, whose last line the driver reads."""
    with tempfile.TemporaryDirectory() as folder:
        for name, (launcher, number) in {
            "usual": ({}, "1"),
            "no such submission": ({}, "2"),
            "odd settings": ({"max_worker": 1}, "1"),
        }.items():
            launcher = {"name": "ray", "idle_s": 60.0, **launcher}
            place = Place(Path(folder) / name, launcher, {}, place="http://head")
            lines = place.run("ray.worker", number, "4", "2")
            logs = sorted(place.store.glob(f"sweeps/{SWEEP}/submissions/**/*.log"))
            lines += [
                f"{log.name}: {place.plain(line)}" for log in logs for line in log.read_text().splitlines()
            ]
            yield from lines_of(name, [*lines, *place.records()])


def steps_of_nodes() -> Answers:
    """The second step by which a node gets the code: it becomes the module that it is to run."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "p", {"name": "ray"}, {}, place="http://head")
        (Path(folder) / "code").mkdir()
        planned = snapshots.plan(place.ledger.objects, [f"{folder}/code"])
        whole = snapshots.store(place.ledger.objects, planned).digest
        (Path(folder) / "shown.py").write_text(
            "import os, sys\nprint(os.environ['PYTHONPATH'], *sys.argv[1:])\n"
        )
        own = {"PYTHONPATH": f"{folder}/first:{folder}", "SWEEP_CACHE": f"{folder}/cache"}
        for name, store in {"unknown": place.store, "no store": Path(folder) / "nowhere"}.items():
            said = io.StringIO()
            with contextlib.redirect_stderr(said):
                code = boot.main([str(store), "d" * 64, "shown"])
            yield name, (code, place.plain(said.getvalue()).replace(folder, "FOLDER"))
        words = ["-P", "-m", "orchestrator.launchers.ray.boot", str(place.store), whole, "shown", "a", "b c"]
        environment = {
            **os.environ,
            **own,
            "PYTHONPATH": os.pathsep.join([own["PYTHONPATH"], str(Path.cwd())]),
        }
        done = subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
        )
        text = f"{done.stdout}{done.stderr}".replace(whole, "DIGEST").replace(str(Path.cwd()), "HERE")
        yield "whole", (done.returncode, text.replace(folder, "FOLDER"))


def submissions() -> Answers:
    """What the records of submissions become when they are read again."""
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder) / "p", {"name": "slurm"}, {}, tasks=(("a",), ("b",), ("c",), ("d",)))
        ours = place.submissions
        second = msgspec.structs.replace(place.submission, number=2, name="s.2", tasks=(("a",),))
        yield "filed again", (ours.file(second), ours.file(msgspec.structs.replace(second, nonce="x")))
        ours.accept(1, "12", at="T1")
        ours.accept(1, "13", at="T2")
        node_fail = JobEnd(index=1, word="NODE_FAIL", cause=Cause.NODE_LOST, restarts=2, detail="it broke")
        ours.close(1, [node_fail, JobEnd(index=0, word="COMPLETED")], at="2026-01-01T00:00:00Z")
        ours.close(1, [JobEnd(index=1, word="COMPLETED")], at="2026-01-01T00:00:01Z")
        for index, restart, code in ((2, 0, 75), (2, 10, 0), (2, 9, 3), (1, 0, 4)):
            ours.report(1, index, restart, JobExitReport(code=code, restart=restart))
        ours.report(2, 0, 0, JobExitReport(code=5))
        lost = LostSlot(slot=4, restart=1, cause=Cause.OOM_HOST, why="killed")
        ours.drive(1, DriverStatus(restart=1, beat=3, text="2 workers run", lost=(lost,)))
        (place.store / f"sweeps/{SWEEP}/submissions/000003.json").write_text("{}")
        reports = place.store / f"sweeps/{SWEEP}/submissions/000001/reports"
        for name in ("3.x.json", "x.0.json", "3.0.txt"):
            (reports / name).write_text("{}")
        problems: list[str] = []
        for filed in ours.read(problems):
            yield f"read {filed.submission.number}", [shortened(plain(value)) for value in filed[1:]]
            yield f"gone {filed.submission.number}", list(gone_of([filed]))
            yield f"gone later {filed.submission.number}", list(gone_of([filed], grace_s=1e12))
        yield "problems", [place.plain(line) for line in problems]
        batch = place.store / f"sweeps/{SWEEP}/submissions/000001/closings/000002.json"
        batch.write_text("{")
        (place.store / f"sweeps/{SWEEP}/submissions/000002/job.json").write_text("[]")
        remarks: list[str] = []
        ours.read(remarks=remarks)
        yield "remarks", [place.plain(line) for line in remarks]
        yield (
            "each",
            (
                ours.submission(9),
                ours.job_of(1),
                ours.job_of(2),
                ours.is_closed(1, 1),
                ours.is_closed(1, 3),
                ours.driver(2),
            ),
        )
        driver = DriverRecords(place.ledger, SWEEP, 1, 2)
        yield "first", (driver.is_status_due(), driver.submission_end())
        for text, force in (("one runs", False), ("one runs", False), ("none", False), ("none", True)):
            driver.write_status(text, [lost], force=force)
            yield f"status {text} {force}", told(msgspec.to_builtins(ours.driver(1)))
        for code, why, claimed in ((0, "", False), (4, "no GPU", False), (75, "x", True)):
            driver.write_report(code, why, claimed=claimed)
            report = place.store / f"sweeps/{SWEEP}/submissions/000001/reports/0.2.json"
            yield f"report {code}", place.plain(told(json.loads(report.read_text())))
        for settings_of in (1, 2):
            yield (
                f"request {settings_of}",
                place.plain(plain(answer(partial(request_of, place.ledger, SWEEP, settings_of)))),
            )


ASKED: dict[str, Callable[[], Answers]] = {
    "slurm_jobs": slurm_jobs,
    "assignments": assignments,
    "ray_workers": ray_workers,
    "steps_of_nodes": steps_of_nodes,
    "submissions": submissions,
}
