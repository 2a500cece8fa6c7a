"""What the command says of a Ray cluster from outside is true, and what it is asked for is what is done."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.launchers.ray.boot import PROBE
from tests.cli.launches import records, wait_for
from tests.ray.proxy import losing
from tests.ray.sweeps import OnRay
from tests.ray.testbed import free_port, group_of

DEVICES = """
import os, time


def devices(config, inputs, context):
    folder = context.output.parents[4] / "seen"
    folder.mkdir(exist_ok=True)
    (folder / str(config.seed)).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    return [{"devices": os.environ.get("CUDA_VISIBLE_DEVICES", "none")}]
"""


def background(jobs: OnRay, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Runs a verb beside the test, in a process group of its own as a terminal makes it."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "orchestrator", *words],
        cwd=jobs.folder,
        env={**(jobs.env or {}), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )


def assert_nothing_was_recorded(jobs: OnRay) -> None:
    """No revision, no request and no submission, here or there."""
    assert not list(jobs.store.glob("sweeps/*"))
    names = [job["submission_id"] for job in jobs.cluster.ask("/api/jobs/")]
    assert not [name for name in names if name.startswith("refused.")]


def wrapper(jobs: OnRay, script: str) -> str:
    """A Python of the cluster's that a shell script starts."""
    path = jobs.folder.parent / "python"
    path.write_text(f'#!/bin/sh\n{script} "$@"\n')
    path.chmod(0o755)
    return f"launcher.python={path}"


# What is asked of nodes


@pytest.mark.long
def test_why_tells_what_is_missing_and_the_largest_free_node_while_other_cells_go_on(jobs):
    jobs.launch(jobs.write(cells=3), "launcher.resources=[{only: 'seed=0', gpus: 64}]")
    jobs.until(lambda: list(jobs.states().values())[1:] == ["done", "done"])
    why = jobs.until(lambda: said if "largest" in (said := jobs("why", "jobs", "seed=0")) else "")
    assert "queued: job " in why and "0 workers run, 1 waits for 64 GPU, 256 CPU" in why
    assert "the largest free node is 127.0.0.1 (" in why and "no node is large enough, busy or not" in why
    assert "for 64 GPU" in jobs("status", "jobs")
    assert "cancelled 1 cell" in jobs("cancel", "jobs")
    jobs.until_over()
    assert jobs.counts() == {"done": 2, "cancelled": 1}


@pytest.mark.long
def test_no_more_workers_wait_for_resources_than_asked(jobs):
    asked = "launcher.resources=[{gpus: 3, cpus: 1}]"  # one at once, on the node with four
    jobs.launch(jobs.write(cells=9, steps=4, step_s=0.2), asked, "launcher.max_pending=2")
    most = 0
    while len(list((jobs.store / "done").rglob("*.json"))) < 9:
        told = jobs.cluster.ask("/api/v0/actors?detail=1&limit=1000")
        rows = [row for row in told["data"]["result"]["result"] if row["class_name"] == "Slot"]
        most = max(most, sum(row["state"] == "PENDING_CREATION" for row in rows))
        assert sum(row["state"] == "ALIVE" for row in rows) <= 1
        time.sleep(0.2)
    assert most == 2
    jobs.assert_each_done_once(9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "seen"),
    [("gpus: 1, custom: {node3: 0.1}", "0123"), ("gpus: 0.5, custom: {node1: 0.1}", "0011")],
)
def test_workers_on_one_node_see_gpus_of_their_own_or_share_them(jobs, asked, seen):
    jobs.write_stages(DEVICES)
    jobs.launch(jobs.write(cells=4, stage="devices"), f"launcher.resources=[{{cpus: 1, {asked}}}]")
    jobs.until_done(4)
    assert sorted(done["rows"][0]["devices"] for done in jobs.products()) == list(seen)


PATHS = """
import os, added


def paths(config, inputs, context):
    return [{"added": added.NAME, "path": os.environ["PYTHONPATH"]}]
"""


@pytest.mark.long
def test_packages_on_the_python_path_of_the_launcher_s_environment_are_found_behind_the_snapshot(jobs):
    packages = jobs.folder.parent / "packages"
    (packages / "orchestrator").mkdir(parents=True)
    (packages / "orchestrator/__init__.py").write_text("raise SystemExit('not the code of the launch')")
    (packages / "added.py").write_text("NAME = 'found'")
    jobs.write_stages(PATHS)
    name = jobs.write(cells=1, stage="paths")
    (jobs.folder / name).write_text((jobs.folder / name).read_text().replace(", preload: [mine]", ""))
    jobs.launch(name, f"launcher.environment={{PYTHONPATH: {packages}}}")
    jobs.until_done(1)
    (row,) = jobs.products()[0]["rows"]
    assert row["added"] == "found" and row["path"].endswith(f"/polysweep:{packages}")


@pytest.mark.long
def test_the_type_of_an_accelerator_is_asked_for(jobs):
    asked = "launcher.resources=[{gpus: 1, cpus: 1, accelerator: H100}]"
    jobs.launch(jobs.write(cells=1), asked)
    jobs.until(lambda: "waits for 1 GPU, 1 CPU, H100" in jobs.why())
    assert "no node is large enough" in jobs.why()
    jobs.cluster.start_node("fast", {"GPU": 1, "accelerator_type:H100": 1})
    jobs.until_done(1)


# What must be the same here and there


@pytest.mark.long
def test_another_version_of_a_package_is_refused_before_anything_is_recorded_unless_accepted(jobs):
    other = jobs.folder.parent / "other/msgspec-0.0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: msgspec\nVersion: 0.0.1\n")
    python = wrapper(jobs, f'PYTHONPATH="{other.parent}:$PYTHONPATH" exec {sys.executable}')
    jobs.write("refused", cells=1)
    said = jobs.launch("refused.yaml", python, code=2)
    assert "has another environment: msgspec 0.0.1 (here " in said
    assert said.startswith("error: ") and "launcher.accept=[NAME, ...]" in said
    assert_nothing_was_recorded(jobs)
    jobs.launch(jobs.write(cells=1), python, "launcher.accept=[msgspec]")
    jobs.until_done(1)


@pytest.mark.long
def test_a_python_without_the_packages_or_without_the_store_is_refused(jobs):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", jobs.folder.parent / "bare"], check=True)
    name = jobs.write("refused", cells=1)
    said = jobs.launch(name, f"launcher.python={jobs.folder.parent}/bare/bin/python", code=2)
    assert "no msgspec (here " in said and "no ray (here " in said
    assert_nothing_was_recorded(jobs)
    hidden = f'mount -t tmpfs none {jobs.store}; {{}} exec {sys.executable} "$@"'
    said = jobs.launch(name, wrapper(jobs, f"exec unshare -m sh -c '{hidden.format('')}' sh"), code=2)
    assert "does not see the store" in said and "FileNotFoundError" in said and "s3://" in said
    other = hidden.format(f"echo another > {jobs.store}/store.json;")
    said = jobs.launch(name, wrapper(jobs, f"exec unshare -m sh -c '{other}' sh"), code=2)
    assert "there is another store at that place" in said
    for job in jobs.cluster.ask(
        "/api/jobs/"
    ):  # Ray keeps their logs, and the next of that name adds to its own
        if str(job["submission_id"]).startswith(PROBE):
            jobs.cluster.ask(f"/api/jobs/{job['submission_id']}", method="DELETE")
    said = jobs.launch(name, "launcher.python=/nowhere/python", code=3)
    assert "did not run a small job of '/nowhere/python'" in said and "launcher.python=PATH" in said
    assert_nothing_was_recorded(jobs)


def test_a_small_job_that_something_kills_is_run_again(jobs):
    name, mark = jobs.write("twice", cells=1), jobs.folder.parent / "killed"
    once = f'test -e "{mark}" || {{ touch "{mark}"; kill -9 $$; }}'
    jobs.launch(name, wrapper(jobs, f"{once}; exec {sys.executable}"))
    assert mark.exists()


# Where the cluster is


class NoRay(BaseHTTPRequestHandler):
    """A web server that is none of Ray's."""

    def do_GET(self) -> None:
        """Says so."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, format: str, *args: object) -> None:
        """Keeps quiet."""


@pytest.mark.long
def test_addresses_that_lead_nowhere_are_short_errors_within_seconds(jobs):
    name = jobs.write("refused", cells=1)
    server = HTTPServer(("127.0.0.1", 0), NoRay)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    jobs.env = {**(jobs.env or {}), "RAY_ADDRESS": f"127.0.0.1:{free_port()}"}  # where auto looks
    try:
        for address, code, said in (
            (f"http://127.0.0.1:{free_port()}", 3, "does not answer: http://127.0.0.1"),
            (f"http://127.0.0.1:{server.server_port}", 3, "is no Ray dashboard"),
            ("ray://127.0.0.1:10001", 2, "is a Ray Client's"),
            ("127.0.0.1:8265", 2, "http://HOST:8265 (the dashboard's)"),
            ("auto", 2, "there is no Ray cluster on this machine\n  [Errno 111]"),
        ):
            start_s = time.monotonic()
            found = jobs("launch", name, "launcher=ray", f"launcher.address={address}", code=code)
            assert said in found and len(found.splitlines()) <= 5, found
            print(f"{address}: {time.monotonic() - start_s:.1f} s")
            assert time.monotonic() - start_s < 15
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    (jobs.folder / "token").write_text("wrong" * 8)
    jobs.env = {**(jobs.env or {}), "RAY_AUTH_TOKEN_PATH": str(jobs.folder / "token")}
    found = jobs.launch(name, code=3)
    assert "RAY_AUTH_TOKEN" in found and len(found.splitlines()) <= 5, found
    right = f"Bearer {(jobs.cluster.folder / 'token').read_text()}"
    jobs.env = {**jobs.env, "RAY_JOB_HEADERS": json.dumps({"Authorization": right})}
    assert "submission_id" in jobs.launch(name, "--dry-run")
    assert_nothing_was_recorded(jobs)


# Status, why, logs, cancel


@pytest.mark.long
def test_from_outside_a_launch_returns_and_every_verb_tells_of_it_until_a_cancel(jobs):
    name = jobs.write(cells=2, steps=400, step_s=0.1)
    before = {job["submission_id"] for job in jobs.cluster.ask("/api/jobs/")}
    said = jobs.launch(name)
    assert "2 cells in 1 task" in said and "2 queued" in said
    jobs.until(lambda: jobs.counts() == {"running": 2})
    assert "have a job" in jobs("launch", name, *jobs.words, "--dry-run")
    assert " job " not in jobs.launch(name) and len(jobs.submissions()) == 1
    why = jobs("why", "jobs", "seed=0")
    assert "running: " in why and "runs; 2 workers run" in why
    follow = background(jobs, "logs", "jobs", "seed=0", "--follow")
    job = jobs("logs", "jobs", "seed=0", "--job")
    assert "driver: " in job and "worker 1: " in job and "worker 2: " in job and "count: attempt 1" in job
    assert "driver: " in jobs.json("logs", "jobs", "seed=0", "--job")["text"]
    jobs.until_checkpoints(2)
    assert follow.poll() is None
    assert "cancelled 2 cells, 2 of them running" in jobs("cancel", "jobs")
    wait_for(lambda: follow.poll() is not None, 30)
    jobs.until_over()
    assert {(end["outcome"], end["why"]) for end in jobs.ends()} == {("released", "cancelled")}
    assert jobs.counts() == {"cancelled": 2}
    jobs.until_job("SUCCEEDED")
    new = [job for job in jobs.cluster.ask("/api/jobs/") if job["submission_id"] not in before]
    assert {job["status"] for job in new} == {"SUCCEEDED"}  # the small jobs of the version check too


@pytest.mark.long
def test_where_the_variable_of_ray_names_the_cluster_a_launch_stays_and_an_interrupt_leaves_the_job(jobs):
    name = jobs.write(cells=2, steps=100, step_s=0.2)
    words = ("launch", name, "launcher=ray", "launcher.settle_s=5")
    launch = background(jobs, *words, RAY_API_SERVER_ADDRESS=jobs.cluster.address)
    jobs.until_checkpoints(2)
    assert launch.poll() is None
    os.killpg(launch.pid, signal.SIGINT)
    output, _ = launch.communicate(timeout=30)
    assert launch.returncode not in (0, None) and "Traceback" not in output, output
    assert "cells: 0 of 2 done" in output
    assert len(jobs.driver_pids()) == 1
    again = background(jobs, *words, RAY_API_SERVER_ADDRESS=jobs.cluster.address)
    output, _ = again.communicate(timeout=90)
    assert again.returncode == 0 and "2 done" in output, output
    assert len(jobs.submissions()) == 1
    assert "sweep status" not in output.splitlines()[-1]
    jobs.assert_each_done_once(2)


def listening(pids: set[int]) -> dict[str, str]:
    """The addresses at which processes listen by TCP, in hexadecimal, each with a process's name."""
    sockets = {}
    for pid in pids:
        try:
            links = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
            sockets |= {str(link): Path(f"/proc/{pid}/comm").read_text().strip() for link in links}
        except OSError:
            continue
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    rows = [(row[1], f"socket:[{row[9]}]") for row in map(str.split, lines) if row[3] == "0A"]
    return {address: sockets[key] for address, key in rows if key in sockets}


@pytest.mark.long
def test_a_ray_of_its_own_is_started_where_there_is_none_and_listens_to_this_machine_alone(jobs):
    name = jobs.write(cells=3, steps=40, step_s=0.2)
    words = ("launch", name, "launcher=ray", "launcher.address=local", "launcher.device=cpu")
    launch = background(jobs, *words)
    jobs.until_running(1)
    (driver,) = jobs.driver_pids()
    found = listening(set(group_of(driver)))
    assert {"raylet", "gcs_server"} <= set(found.values())
    loopback = ("0100007F:", "0000000000000000FFFF00000100007F:", "00000000000000000000000001000000:")
    assert not {address: name for address, name in found.items() if not address.startswith(loopback)}
    output, _ = launch.communicate(timeout=200)
    assert "3 done" in output
    jobs.until_over()
    jobs.assert_each_done_once(3)


@pytest.mark.long
def test_a_lost_answer_to_the_submission_never_makes_two_drivers(jobs):
    name = jobs.write(cells=2, steps=20, step_s=0.2)
    port = int(jobs.cluster.address.rpartition(":")[2])
    words = ("launch", name, "launcher=ray", "launcher.settle_s=5")
    with losing(port, b"orchestrator.launchers.ray.driver") as address:
        said = jobs(*words, f"launcher.address={address}", code=3)
        assert "did not say whether it took submission 1" in said and "sweep reconcile jobs" in said
        assert jobs.reasons() and "was not answered" in str(jobs.reasons())
        assert " job " not in jobs(*words, f"launcher.address={address}")
        jobs.until_done(2)
    assert len(jobs.submissions()) == 1
    names = [job["submission_id"] for job in jobs.cluster.ask("/api/jobs/")]
    assert names.count(jobs.submissions()[0]["name"]) == 1
    jobs.assert_each_done_once(2)


# Workers that cannot start


@pytest.mark.long
def test_workers_that_cannot_start_end_their_job_with_its_reason(jobs):
    name = jobs.write(cells=2)
    here = "launcher.resources=[{custom: {node1: 0.1}}]"  # no other node takes over from a bad one
    jobs.launch(name, here, "launcher.environment={PYTHONHOME: /nonexistent}", "policy.retries.bad_node=0")
    jobs.until_over()
    jobs.until_job("FAILED")
    said = jobs("reconcile", "jobs", code=1)
    assert "jobs failed by bad_node: 2 cells" in said and "4 workers in a row claimed nothing" in said
    assert jobs.counts() == {"failed": 2} and not records(jobs.store, "claim.json")
    assert "4 workers in a row claimed nothing" in jobs("why", "jobs", "seed=0")
    job = jobs("logs", "jobs", "seed=0", "--job")
    assert job.count("driver: worker") == 4
    assert "1 task" in jobs.launch(name)
    jobs.until_done(2)
