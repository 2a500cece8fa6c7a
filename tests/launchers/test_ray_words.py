"""The Ray launcher's decisions by tables: settings, resources, versions, words of the Jobs API."""

from __future__ import annotations

import platform
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import msgspec
import pytest

from orchestrator import provenance
from orchestrator.core.failure import Cause
from orchestrator.core.selector import Subject
from orchestrator.costs import Estimate
from orchestrator.errors import UserError
from orchestrator.jobs.judgement import Phase, SubmissionState
from orchestrator.jobs.records import Accepted, JobEnd, Resources, cause_of_code
from orchestrator.jobs.submissions import gone_of
from orchestrator.launchers.base import overrides_of
from orchestrator.launchers.ray import lost_workers
from orchestrator.launchers.ray.api import JobDetails
from orchestrator.launchers.ray.boot import differences, our_packages
from orchestrator.launchers.ray.launcher import check_version
from orchestrator.launchers.ray.scheduler import RayScheduler, seen_of
from orchestrator.launchers.ray.settings import (
    NodeResources,
    WorkerOverride,
    demand,
    fits,
    ray_settings,
    resources_of,
    waits_for,
)
from tests.store.builders import submission_of


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"address": "ray://head:10001"}, "is a Ray Client's"),
        ({"address": "head:8265"}, "launcher.address is 'head:8265'"),
        ({"address": ""}, "launcher.address is ''"),
        ({"max_pending": 0}, "launcher.max_pending is 0"),
        ({"max_workers": 0}, "launcher.max_workers is 0"),
        ({"cpus": 0}, "launcher.cpus is 0"),
        ({"idle_s": -1}, "launcher.idle_s is -1"),
        ({"settle_s": float("nan")}, "launcher.settle_s is nan"),
        ({"device": "h10"}, "unknown device 'h10'"),
        ({"max_worker": 3}, "max_worker"),
        ({"max_workers": "many"}, "max_workers"),
        ({"environment": {"A-B": 1}}, "'A-B' in launcher.environment"),
        ({"resources": [{"gpus": 1.5}]}, "gpus of all cells is 1.5"),
        ({"resources": [{"only": "seed=0", "gpus": -1}]}, "launcher.resources[0].gpus is -1"),
        ({"resources": [{"cpus": 0}]}, "launcher.resources[0].cpus is 0"),
        ({"resources": [{"memory_gib": 0}]}, "launcher.resources[0].memory_gib is 0"),
        ({"resources": [{"custom": {"tpu": 0}}]}, "custom.tpu of all cells is 0"),
        ({"resources": [{"custom": {"GPU": 1}}]}, "custom.GPU of all cells"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(UserError) as refused:
        ray_settings({"name": "ray", **settings})
    assert said in str(refused.value)


def test_a_ray_of_its_own_that_would_listen_to_the_network_is_refused():
    for version in ("2.60.0", "2.61", "3.0.0rc1"):
        check_version(version)
    for version in ("2.59.1", "2.9", "1.13.0"):
        with pytest.raises(UserError, match=r"needs Ray 2\.60 or newer"):
            check_version(version)


@pytest.mark.parametrize("address", ["auto", "local", "http://head:8265", "https://head/ray/"])
def test_addresses_that_are_taken(address):
    assert ray_settings({"address": address}).is_remote == address.startswith("http")


# Sentences of Ray 2.60: one cause's message holds words of another's.
LOW = (
    "4 worker(s) were killed due to the node running low on memory. Memory on the node (IP: "
    "10.0.0.1, ID: 15a8) was 22.9GB used / 23.5GB limit (0.97). OOM kill reason: Memory usage "
    "24B exceeded threshold of 23B (95.0%)"
)
NODE_DIED = (
    "Job supervisor actor died: The actor died unexpectedly before finishing this task.\nThe "
    "actor died because its node has died. Node Id: 15a8\n\tthe actor's node was terminated "
    "unexpectedly: health check failed. This can happen when a (1) raylet crashes "
    "unexpectedly (OOM, etc.) - The agent is killed by the OS (e.g., out of memory)."
)
CRASHED = (
    "The actor died unexpectedly before finishing this task. The actor is dead because its "
    "worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error. There are some potential root causes. (1) "
    "The process is killed by SIGKILL by OOM killer due to high memory."
)
OUT_OF_MEMORY, DIED = ("OutOfMemoryError", "RayError"), ("ActorDiedError", "RayActorError", "RayError")


@pytest.mark.parametrize(
    ("types", "message", "drained", "cause"),
    [
        (OUT_OF_MEMORY, LOW.replace("4 worker", "1 worker"), False, Cause.OOM_HOST),
        (OUT_OF_MEMORY, LOW, False, Cause.PREEMPTED),
        (
            ("OutOfMemoryError", "RayError"),
            "Task was killed due to the node running low on memory.",
            True,
            Cause.OOM_HOST,
        ),
        (DIED, NODE_DIED, False, Cause.NODE_LOST),
        (DIED, NODE_DIED, True, Cause.PREEMPTED),
        (
            DIED,
            NODE_DIED.replace("terminated unexpectedly", "preempted"),
            False,
            Cause.PREEMPTED,
        ),
        (DIED, CRASHED, False, Cause.NODE_LOST),
        (
            ("ActorUnavailableError", "RayActorError", "RayError"),
            "the preempted node",
            False,
            Cause.NODE_LOST,
        ),
        (("ObjectStoreFullError", "RayError"), "the node's store is out of memory", False, Cause.STORAGE),
        (("RuntimeEnvSetupError", "RayError"), "on node 10.0.0.1", False, Cause.BAD_NODE),
        (("GetTimeoutError", "RayError"), "no node answered", False, Cause.UNKNOWN),
    ],
)
def test_the_cause_of_a_lost_worker_is_that_of_its_error_and_of_no_word_in_it(types, message, drained, cause):
    assert lost_workers.cause_of_error(types, message, drained=drained) is cause


@pytest.mark.parametrize(
    ("job", "phase", "cause", "detail"),
    [
        ({"status": "PENDING", "message": "Job has not\nstarted"}, Phase.QUEUED, None, "Job has not started"),
        ({"status": "RUNNING", "start_time": 1_700_000_000_000}, Phase.RUNNING, None, ""),
        ({"status": "SUCCEEDED"}, Phase.OVER, None, "ended as it should"),
        ({"status": "STOPPED"}, Phase.OVER, Cause.CANCELLED, "stopped by its user"),
        ({"status": "FAILED", "driver_exit_code": 4}, Phase.OVER, Cause.BAD_NODE, "refused to work"),
        ({"status": "FAILED", "driver_exit_code": 75}, Phase.OVER, None, "gave its work back"),
        ({"status": "FAILED", "driver_exit_code": 3}, Phase.OVER, Cause.STORAGE, "the store"),
        (
            {"status": "FAILED", "driver_exit_code": 1, "message": "entrypoint failed, logs:\nnode 1\nboom"},
            Phase.OVER,
            Cause.UNKNOWN,
            "its driver ended with exit code 1: boom",
        ),
        (
            {"status": "FAILED", "message": NODE_DIED, "error_type": "JOB_SUPERVISOR_ACTOR_DIED"},
            Phase.OVER,
            Cause.NODE_LOST,
            "node has died",
        ),
        ({"status": "FAILED", "message": NODE_DIED}, Phase.OVER, Cause.NODE_LOST, "node has died"),
        ({"status": "FAILED", "message": LOW}, Phase.OVER, Cause.PREEMPTED, "low on memory"),
        (
            {"status": "FAILED", "message": f"Job supervisor actor died: {LOW}"},
            Phase.OVER,
            Cause.PREEMPTED,
            "low",
        ),
        (
            {"status": "FAILED", "message": "no node has so many CPUs"},
            Phase.OVER,
            Cause.UNKNOWN,
            "so many CPUs",
        ),
        ({"status": "FAILED"}, Phase.OVER, Cause.UNKNOWN, "Ray says no more"),
        ({"status": "A_WORD_TO_COME"}, Phase.UNKNOWN, None, ""),
    ],
)
def test_what_the_jobs_api_says(job, phase, cause, detail):
    seen = seen_of(msgspec.convert(job, JobDetails))
    assert seen.phase is phase
    if seen.over is not None:
        assert seen.over.cause is cause and detail in seen.over.detail
    else:
        assert phase is not Phase.OVER and seen.reason == detail


SMALL, LARGE = {"CPU": 4.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 4.0, "memory": 64.0 * 2**30}


@pytest.mark.parametrize(
    ("resources", "said"),
    [
        (
            Resources(gpus_per_node=2, cpus=4),
            " for 2 GPU, 4 CPU; the largest free node is b with 1 GPU, 8 CPU",
        ),
        (Resources(cpus=1), " for 1 CPU; the largest free node is b with 8 CPU"),
        (
            Resources(gpus_per_node=8, cpus=4),
            " for 8 GPU, 4 CPU; the largest free node is b with 1 GPU, 8 CPU;"
            " no node is large enough, busy or not",
        ),
        (
            Resources(gpus_per_node=0.5, accelerator="H100"),
            " for 0.5 GPU, 1 CPU, H100; the largest free node is b with 1 GPU, 8 CPU, no H100;"
            " no node is large enough, busy or not",
        ),
        (
            Resources(memory_gib=32, custom=(("tpu", 1.0),)),
            " for 1 CPU, 32 GiB, 1 tpu; the largest free node is b with 8 CPU, 64 GiB, 0 tpu;"
            " no node is large enough, busy or not",
        ),
    ],
)
def test_what_workers_wait_for(resources, said):
    nodes = {
        "a": NodeResources({"CPU": 0.0, "GPU": 0.0}, SMALL),
        "b": NodeResources({**LARGE, "GPU": 1.0}, LARGE),
    }
    assert waits_for(resources, nodes) == said


def test_without_nodes_only_what_is_asked_is_told():
    assert waits_for(Resources(cpus=2), {}) == " for 2 CPU"


@pytest.mark.parametrize(
    ("running", "pending", "said"), [(1, 0, "1 worker runs"), (2, 1, "2 workers run, 1 waits")]
)
def test_demand(running, pending, said):
    assert demand(running, pending) == said


def test_a_node_is_large_enough_by_each_of_its_resources():
    assert fits(Resources(gpus_per_node=2, cpus=4), SMALL)
    assert not fits(Resources(gpus_per_node=2, cpus=5), SMALL)
    assert not fits(Resources(memory_gib=1), SMALL)


ESTIMATE = Estimate(num_gpus=2, host_memory_gib=5.0)
FIRST = ((Cause.OOM_HOST, 0, 1),)


@pytest.mark.parametrize(
    ("estimate", "asked", "has_gpus", "expected"),
    [
        (None, [], True, Resources(cpus=1)),
        (ESTIMATE, [], True, Resources(gpus_per_node=2, cpus=8, memory_gib=6.0, rungs=FIRST)),
        (ESTIMATE, [], False, Resources(cpus=1, memory_gib=6.0, rungs=FIRST)),
        (
            ESTIMATE,
            [
                WorkerOverride(gpus=0.5, custom={"a": 1.0}),
                WorkerOverride(cpus=3, custom={"b": 2.0}, accelerator="H100"),
            ],
            True,
            Resources(
                gpus_per_node=0.5,
                cpus=3,
                memory_gib=6.0,
                rungs=FIRST,
                accelerator="H100",
                custom=(("a", 1.0), ("b", 2.0)),
            ),
        ),
        (
            ESTIMATE,
            [WorkerOverride(gpus=1), WorkerOverride(gpus=0)],
            True,
            Resources(cpus=1, memory_gib=6.0, rungs=FIRST),
        ),
    ],
)
def test_what_a_worker_asks_for(estimate, asked, has_gpus, expected):
    of_cell = overrides_of(asked, ["a"], [Subject(cell="a", axes={}, columns={}, config={})])["a"]
    assert resources_of(estimate, of_cell, ray_settings({}), has_gpus=has_gpus) == expected


@pytest.mark.parametrize(
    ("num_oom", "most_gib", "memory_gib", "rung"),
    [(0, 8, 6.0, 0), (1, 64, 12.0, 1), (2, 64, 24.0, 1), (1, 8, 8.0, 1), (1, 4, 6.0, 1)],
)
def test_a_worker_asks_for_twice_the_memory_that_did_not_suffice_as_far_as_a_node_has_it(
    num_oom, most_gib, memory_gib, rung
):
    found = resources_of(ESTIMATE, {}, ray_settings({}), has_gpus=True, num_oom=num_oom, most_gib=most_gib)
    assert (found.memory_gib, found.rungs) == (memory_gib, ((Cause.OOM_HOST, rung, 1),))


HERE = platform.python_version()
MINOR = ".".join(HERE.split(".")[:2])


@pytest.mark.parametrize(
    ("python", "packages", "accept", "said"),
    [
        (HERE, {"ray": "2.60.0", "torch": "2.9.0+cu128"}, [], []),
        (f"{MINOR}.99", {"ray": "2.60.0", "torch": "2.9.0"}, [], []),
        ("2.7.18", {"ray": "2.60.0", "torch": "2.9.0"}, [], [f"Python 2.7.18 (here {HERE})"]),
        (
            HERE,
            {"ray": "2.59.0", "torch": None},
            [],
            ["ray 2.59.0 (here 2.60.0)", "no torch (here 2.9.0+cpu)"],
        ),
        (HERE, {"ray": "2.59.0", "torch": None}, ["torch"], ["ray 2.59.0 (here 2.60.0)"]),
    ],
)
def test_what_differs_between_here_and_a_cluster(python, packages, accept, said):
    ours = {"ray": "2.60.0", "torch": "2.9.0+cpu"}
    assert differences(ours, {"python": python, "packages": packages}, accept=accept) == said


def test_workers_may_save_a_checkpoint_after_their_job_was_found_over():
    submission = submission_of(launcher="ray", cluster="http://head:8265")
    over = {0: JobEnd(index=0, word="VANISHED", cause=Cause.NODE_LOST)}
    filed = SubmissionState(submission, Accepted(nonce="n", job="s.1"), over, {}, {0: provenance.now()})
    assert [gone.slot for gone in gone_of([filed])] == [None]
    assert not list(gone_of([filed], grace_s=60))
    assert list(gone_of([filed._replace(closed_at={0: "2026-01-01T00:00:00Z"})], grace_s=60))


@pytest.mark.parametrize("answer", ["null", "[1]", '{"jobs": []}', '[{"status": 3}]', "no JSON"])
def test_a_dashboard_that_answers_something_else_is_a_problem_and_tells_of_no_job(answer, monkeypatch):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_):
            pass

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told = RayScheduler(f"http://127.0.0.1:{server.server_port}").jobs(["a"])
        server.shutdown()
    assert "is no Ray dashboard for us" in told.problem and not told.complete and not told.seen


def test_workers_that_go_with_their_nodes_are_no_failures_of_these_and_lead_to_a_cause_of_their_own():
    failures = lost_workers.Failures()
    for slot in range(lost_workers.MAX_LOST - 1):
        failures.end_badly(slot, "a", "gone", gives_up=True, is_of_node=True)
    assert not failures.avoided and not failures.given_up and failures.not_before_s > time.monotonic()
    failures.end_well("b")  # so the row begins again
    for slot in range(20, 20 + lost_workers.MAX_LOST):
        assert not failures.given_up
        failures.end_badly(slot, "", "gone", gives_up=True, is_of_node=True)
    assert failures.given_up and cause_of_code(failures.code) is Cause.NODE_LOST
    for slot in range(50, 50 + lost_workers.MAX_FRUITLESS):
        failures.end_badly(slot, "c", "no package", gives_up=True)
    assert cause_of_code(failures.code) is Cause.BAD_NODE and failures.avoided == ["c"]
    unreachable = ("ActorUnavailableError", "RayActorError")
    assert lost_workers.is_of_node(unreachable, "RPC error: Socket closed")
    assert lost_workers.is_of_node(("ActorDiedError", "RayActorError"), NODE_DIED)
    assert not lost_workers.is_of_node(("ActorDiedError", "RayActorError"), "The actor's process died")


def test_workers_that_fail_before_a_claim_are_paused_avoid_their_node_and_are_given_up():
    failures = lost_workers.Failures()
    failures.claimed.add(9)
    before_s = time.monotonic()
    for slot, node in enumerate(["a", "a", "b"]):
        failures.end_badly(slot, node, "no package", gives_up=True)
    assert failures.avoided == ["a"] and not failures.given_up
    assert failures.not_before_s >= before_s + 8
    failures.end_badly(9, "a", "killed", gives_up=True)  # it had claimed a stage, so the row begins again
    for slot in range(3, 6):
        failures.end_badly(slot, "b", "no package", gives_up=True)
    assert not failures.given_up
    failures.end_badly(6, "b", "no package", gives_up=False)  # others work
    assert not failures.given_up
    failures.end_badly(7, "b", "no package", gives_up=True)
    assert failures.given_up == "5 workers in a row claimed nothing; the last: no package"
    for _ in range(3):
        failures.end_well("a")
    assert failures.avoided == ["b"]


def test_the_packages_of_extras_that_workers_import_are_compared() -> None:
    compared = set(our_packages())
    assert {"msgspec", "hydra-core", "ray", "obstore", "torch", "transformers", "wandb"} <= compared
    assert not {"textual", "duckdb", "uvicorn"} & compared
