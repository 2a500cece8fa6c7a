"""What launchers make of settings, machines and workers that are gone, as recorded."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.selector import Subject
from orchestrator.costs import Hardware
from orchestrator.execution.liveness import Watcher
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import Accepted, DriverStatus, JobEnd, JobExitReport, LostSlot
from orchestrator.launchers import base
from orchestrator.launchers.external import ExternalLauncher, GpuOverride
from orchestrator.launchers.local import LocalLauncher, LocalSettings, gpu_hardware, slots, visible_gpus
from orchestrator.launchers.ray import lost_workers
from orchestrator.launchers.ray.settings import (
    GIB,
    NodeResources,
    Resources,
    demand,
    described,
    fits,
    grace_of,
    ray_settings,
    waits_for,
)
from tests.launchers.asked.jobs import Place
from tests.recording import Answers, answer
from tests.store.builders import claim, instance_of, owner, settings, submission_of

ERRORS = {
    "memory of one": "1 worker(s) were killed due to the node running low on memory. Memory on the node",
    "memory of four": "4 worker(s) were killed due to the node running low on memory",
    "task": "Task was killed due to the node running low on memory.",
    "preempted": "x the actor's node was preempted: y",
    "drained": "DRAIN_NODE_REASON_PREEMPTION",
    "node": "The actor died because its node has died. Node Id: 15a8",
    "supervisor": "Job supervisor actor died: The actor died",
    "another": "Worker unexpectedly exits with a connection error: OOM killer",
}


def losses() -> Answers:
    """What the loss of a worker counts as, and when it is certain."""
    for (name, message), drained in itertools.product(ERRORS.items(), (False, True)):
        for types in (
            ("ActorDiedError", "RayActorError"),
            ("OutOfDiskError",),
            ("ActorUnavailableError",),
            ("RuntimeEnvSetupError",),
        ):
            yield (
                f"{name} {types} {drained}",
                (
                    str(lost_workers.cause_of_error(types, message, drained=drained)),
                    lost_workers.is_of_node(types, message),
                    str(lost_workers.cause_of_job(message, "JOB_SUPERVISOR_ACTOR_DIED" if drained else "")),
                ),
            )
    for output in (
        "",
        "a\nb" * 200,
        'x\n{"said": "it ends", "claims": 2}\n',
        '{"said": 1}',
        "[1]",
        '{"said": "x", "claims": "y"}',
    ):
        yield f"last words {output[:20]}", lost_workers.Ended(1, "n", "a", 0, output).last_words()
    for steps in (
        "w",
        "bbbb",
        "bbbgb",
        "bbbbG",
        "nnnnnnnnnnnnnnnnG",
        "nnnnnnnnnnnnnnnG",
        "bbwb",
        "c",
        "nbbbbG",
        "bnnG",
    ):
        failures = lost_workers.Failures()
        failures.claimed.add(9)
        for step in steps:
            if step in "wg":
                failures.end_well("n1" if step == "w" else "n2")
            else:
                slot, node = (9 if step == "c" else 1), ("n2" if step == "n" else "n1")
                failures.end_badly(slot, node, "no GPU", gives_up=step.isupper(), is_of_node=step == "n")
        wait_s = failures.not_before_s and round(failures.not_before_s - time.monotonic())
        yield f"failures {steps}", (failures.avoided, wait_s, failures.given_up, failures.code)
    stop = lost_workers.Stop(5.0, os.getppid())
    yield "stop", (stop.is_requested, stop.is_overdue(), stop.is_overdue())
    stop.check_parent()
    yield "parent", stop.is_requested
    orphan = lost_workers.Stop(5.0, 1_000_000)
    orphan.check_parent()
    yield "another parent", orphan.is_requested
    stop.on_signal(15, None)
    yield "signal", stop.is_requested
    ended = lost_workers.Stop(-40.0, os.getppid())
    yield "overdue", (ended.is_overdue(), ended.is_overdue())
    yield from _shared_losses()


def _shared_losses() -> Answers:
    """The doubts of one start of a driver, and what its watcher learns."""
    with tempfile.TemporaryDirectory() as folder:
        for restart, grace_s in ((0, 0.0), (2, 0.0), (2, 60.0)):
            place = Place(Path(folder) / f"{restart} {grace_s}", {"name": "ray"}, {}, place="http://head")
            place.submissions.accept(1, "job-1", at="2026-11-25T02:31:50Z")
            former = LostSlot(slot=3, restart=0, cause=Cause.OOM_HOST, why="it was too large")
            place.submissions.drive(1, DriverStatus(restart=0, beat=1, lost=(former,)))
            second = submission_of(2, launcher="ray", cluster="http://head", name="s.2")
            place.submissions.file(second)
            place.submissions.accept(2, "job-2", at="2026-11-25T02:31:50Z")
            place.submissions.close(
                2, [JobEnd(index=0, word="FAILED", cause=Cause.CODE)], at="2026-11-25T02:31:50Z"
            )
            me = owner(cluster="http://head", job="job-1", slot=7, restart_count=restart)
            watcher = Watcher(me)
            found = lost_workers.Losses(
                place.submissions, place.submission, "job-1", restart, watcher=watcher, grace_s=grace_s
            )
            yield f"{restart} {grace_s}, known", found.known
            found.doubt(4, "n1", Cause.NODE_LOST, "its actor died")
            found.doubt(5, "n2", Cause.PREEMPTED, "its node was taken " + "so " * 200)
            found.doubt(6, "n1", Cause.NODE_LOST, "its actor died")
            found.settle([4, 5], lambda node: node == "n1")
            found.settle([4, 5], lambda node: False)
            found.add(None, Cause.BAD_NODE, "password=hunter2hunter2 was wrong", restart=1)
            yield f"{restart} {grace_s}, settled", found.known
            instance = instance_of(place.sweep)
            for job, slot, start in (
                ("job-1", 4, restart),
                ("job-1", 3, 0),
                ("job-1", 8, 1),
                ("job-1", 8, 2),
                ("job-2", 1, 0),
                ("job-3", 1, 0),
            ):
                theirs = owner(
                    host="n", pid=7, boot="b", cluster="http://head", job=job, slot=slot, restart_count=start
                )
                report = watcher(instance, Attempt(number=1, claim=claim(owner=theirs)))
                yield (
                    f"{restart} {grace_s}, {job} {slot} {start}",
                    (str(report.liveness), report.reason, str(report.cause)),
                )


def amounts() -> Answers:
    """What Ray's workers ask for, as text, and which of them fit on a node."""
    large = Resources(gpus_per_node=4, cpus=8, memory_gib=20.5, accelerator="H100", custom=(("tpu", 2.0),))
    asked = {"small": Resources(cpus=1), "large": large, "part": Resources(gpus_per_node=0.25, memory_gib=1)}
    nodes = {
        "n1": NodeResources(
            {"CPU": 4.0, "GPU": 0.5, "memory": 3.0 * GIB}, {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * GIB}
        ),
        "n2": NodeResources({"CPU": 8.0}, {"CPU": 8.0}),
        "n3": NodeResources(
            {"GPU": 4.0, "CPU": 7.0, "memory": 30.0 * GIB, "accelerator_type:H100": 1.0, "tpu": 2.0},
            {"GPU": 4.0, "CPU": 8.0, "memory": 64.0 * GIB, "accelerator_type:H100": 1.0, "tpu": 2.0},
        ),
    }
    for (name, resources), names in itertools.product(
        asked.items(), ((), ("n1",), ("n2",), ("n1", "n2"), ("n1", "n2", "n3"))
    ):
        there = {key: nodes[key] for key in names}
        yield (
            f"{name} {names}",
            (waits_for(resources, there), [fits(resources, node.total) for node in there.values()]),
        )
    for running, pending in itertools.product((0, 1, 2), repeat=2):
        yield f"{running} {pending}", demand(running, pending)
    yield "no", described({"accelerator_type:H100": 0.0, "GPU": 0.0})
    for stop_s in (0.0, 3.0, 100.0):
        yield f"grace {stop_s}", grace_of(settings().policy, Resources(signal_s=stop_s))
    for wrong in (
        {"address": "ray://head:10001"},
        {"address": "head:8265"},
        {"max_pending": 0},
        {"device": "h10"},
        {"max_worker": 3},
        {"environment": {"A-B": 1}},
        {"resources": [{"gpus": 1.5}]},
        {"resources": [{"only": "seed=0", "gpus": 2.5}]},
        {"resources": [{"custom": {"tpu": 0}}]},
        {"resources": [{"only": "x=1", "custom": {"GPU": 1}}]},
        {"address": "auto"},
        {"address": "https://head/x"},
    ):
        yield f"{wrong}", answer(lambda of=wrong: ray_settings(of).is_remote)


class _Has:
    """A launcher with these GPUs."""

    def __init__(self, gpus: base.LaunchGpus | None) -> None:
        self._gpus = gpus

    def hardware(self) -> Hardware:
        return Hardware(device="a100", max_gpus=4, memory_gib=80.0, peak_tflops=312.0)

    def gpus(self) -> base.LaunchGpus | None:
        return self._gpus


def shared_rules() -> Answers:
    """Rules that launchers share."""
    for amount in (0.2, 1, 1.1, 1.5, 1.6, 2, 2.5, 3, 3.1, 4, 5.7, 100):
        yield f"stepped {amount}", base.stepped(amount)
    for device in ("cpu", "a100", "a10"):
        yield f"device {device}", answer(lambda of=device: base.check_device(of, "cluster.device"))
    yield "variables", answer(lambda: base.check_variables(["A", "_b1", "1A"], "cluster.environment"))
    subjects = [Subject({"seed": str(n)}, {}, {}, cell=f"c{n}") for n in range(3)]
    entries = [
        GpuOverride(only="seed=0", gpus=1),
        GpuOverride(gpus=2),
        GpuOverride(only="seed=1", gpus=3),
        GpuOverride(only="seed=2"),
    ]
    yield "overrides", base.overrides_of(entries, ["c0", "c1"], subjects)
    yield (
        "overrides of no cell",
        answer(lambda: base.overrides_of([GpuOverride(only="seed=7")], ["c0"], subjects)),
    )
    for name in ("slurm", "ray", "local", "slrum"):
        yield f"scheduler {name}", answer(lambda of=name: type(base.scheduler(of, "embedded x")).__name__)
    for moldable, gpus in itertools.product(
        (False, True), (None, base.LaunchGpus(16, 8), base.LaunchGpus(16, 2))
    ):
        run = settings()
        run = msgspec.structs.replace(run, hardware=msgspec.structs.replace(run.hardware, moldable=moldable))

        yield f"hardware {moldable} {gpus}", base.hardware_for(_Has(gpus), run)  # type: ignore[arg-type]
    reports = {
        "none": {},
        "ended": {0: JobExitReport(code=0)},
        "again": {0: JobExitReport(code=75, requeued=True)},
    }
    for (name, report), accepted, over in itertools.product(
        reports.items(), (None, Accepted(nonce="n", job="j")), (False, True)
    ):
        ends = {0: JobEnd(index=0, word="COMPLETED")} if over else {}
        filed = SubmissionState(
            submission_of(launcher="ray", cluster="embedded other b n"), accepted, ends, dict(report)
        )
        yield (
            f"asked {name} {accepted is not None} {over}",
            {place: found.problem for place, found in base.ask_schedulers([filed]).items()},
        )
    for settings_of in (
        {},
        {"device": "h100"},
        {"device": "x"},
        {"devices": 1},
        {"resources": [{"only": "seed=9"}]},
    ):
        yield f"external {settings_of}", answer(lambda of=settings_of: _external(of, subjects))


def _external(of: Mapping[str, Any], subjects: list[Subject]) -> object:
    launcher = ExternalLauncher(of, 3)
    launcher.check(subjects)
    launcher.start(None)  # type: ignore[arg-type]
    launcher.stop()
    return launcher.hardware(), launcher.gpus(), launcher.poll(), launcher.refusal(), launcher.takes_snapshot


LISTED = "echo 'GPU 0: A'; echo '  MIG 1'; echo 'GPU 1: B'"


def machines() -> Answers:
    """What the local launcher makes of this machine's CPUs and GPUs."""
    for settings_of, gpus in itertools.product(
        (
            {},
            {"workers": 5},
            {"workers": 0},
            {"cpus_per_worker": 3},
            {"cpus_per_worker": 0},
            {"gpus_per_worker": 2},
            {"gpus_per_worker": 0},
            {"gpus_per_worker": -1},
            {"gpus_per_worker": 9},
        ),
        ((), ("0", "1", "2", "3", "4")),
    ):
        for num_cells in (1, 9):
            yield (
                f"{settings_of} {len(gpus)} {num_cells}",
                answer(lambda of=settings_of, ids=gpus, n=num_cells: slots(LocalSettings(**of), ids, 8, n)),
            )
    with tempfile.TemporaryDirectory() as folder:
        tool = Path(folder) / "nvidia-smi"
        path, os.environ["PATH"] = os.environ["PATH"], f"{folder}:{os.environ['PATH']}"
        try:
            for name, text in {
                "two": "echo '81920, NVIDIA A100-SXM4-80GB'; echo ' 40960, NVIDIA A100-SXM4-40GB'",
                "unknown": "echo '1024, Other'",
                "none": "echo none",
                "failed": "exit 3",
                "words": 'echo "$@" >&2; echo "${#1}, $1 $2 $3"',
            }.items():
                tool.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then {LISTED}; else {text}; fi\n')
                tool.chmod(0o755)
                yield f"tool, {name}", gpu_hardware(("0", "3"), 2)
            for variable in (None, "", "-1", " 3,5 ,", "GPU-ab"):
                yield (
                    f"visible {variable}",
                    visible_gpus({} if variable is None else {"CUDA_VISIBLE_DEVICES": variable}),
                )
            for of in ({}, {"gpus_per_worker": 0}, {"workers": 1, "gpus_per_worker": 2}):
                text = "echo '81920, NVIDIA A100-SXM4-80GB'"
                tool.write_text(f'#!/bin/sh\nif [ "$1" = -L ]; then {LISTED}; else {text}; fi\n')
                os.environ.pop("CUDA_VISIBLE_DEVICES", None)
                launcher = LocalLauncher(of, 9)
                found = launcher.hardware()
                yield (
                    f"launcher {of}",
                    (
                        launcher.takes_snapshot,
                        found and found.device,
                        launcher.gpus(),
                        launcher.refusal(),
                        launcher.poll(),
                        launcher._device,
                        launcher._num_gpus(is_shared=False),
                        launcher._num_gpus(is_shared=True) if launcher._gpus else None,
                    ),
                )
        finally:
            os.environ["PATH"] = path


ASKED: dict[str, Callable[[], Answers]] = {
    "losses": losses,
    "amounts": amounts,
    "shared_rules": shared_rules,
    "machines": machines,
}
