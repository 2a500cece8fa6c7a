"""What Polysweep asks of a Ray dashboard, and what becomes of its answers, is as recorded."""

from __future__ import annotations

import itertools
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.core.records import Code
from orchestrator.core.selector import Subject
from orchestrator.costs import Estimate
from orchestrator.jobs.records import Shortfalls
from orchestrator.launchers.ray import boot, scheduler
from orchestrator.launchers.ray.api import Api, auth_token, job_headers
from orchestrator.launchers.ray.launcher import RayLauncher, check_version, found_here
from orchestrator.launchers.ray.scheduler import RayScheduler
from orchestrator.launchers.ray.settings import ray_settings
from orchestrator.provenance import boot_id, pid_namespace
from orchestrator.store.ledger import open_ledger
from tests.launchers.asked.slurm_words import told
from tests.launchers.dashboard import NODES, Dashboard, dashboard
from tests.recording import Answers, answer, plain
from tests.store.builders import submission_of

SUBMITTED = submission_of(7, launcher="ray", name="s.7", cluster="", by="ann@login", folder="/work")


def _calls(asks: Callable[[Dashboard], Answers]) -> Answers:
    """Each answer with the requests that led to it."""
    with dashboard() as here:
        for question, found in asks(here):
            text = " / ".join([plain(found), *here.requests()]).replace(here.address, "http://HEAD")
            text = re.sub(r"(polysweep-probe-)[0-9a-f]{12}", r"\1USER", text)
            yield question, text


ANSWERS: dict[str, tuple[int, Any]] = {
    "other": (200, {"submission_id": "s.8"}),
    "taken": (500, "ValueError: Job with submission_id s.7 already exists."),
    "refused": (400, "bad\nrequest " + "no " * 200),
    "login": (200, "<html>Sign in</html>"),
    "forbidden": (403, "Forbidden"),
    "broken": (502, "Bad gateway"),
    "strange": (200, {"ray_version": 3}),
    "redirect": (302, ""),
}


def _dashboards(here: Dashboard) -> Answers:
    api = Api(here.address)
    launcher = RayLauncher({"address": here.address}, 1)
    text = json.dumps({"submission_id": "s.7", "entrypoint": "exit 3"})
    of_here = msgspec.structs.replace(SUBMITTED, cluster=here.address)
    yield "submitted", launcher.submit(SUBMITTED, text)._asdict()
    yield "job", api.job("s.7")
    yield "found", launcher.find(of_here)
    for name, reply in ANSWERS.items():
        here.replies["any"] = reply
        here.location = f"{here.address}/ray/api/version?x" if name == "redirect" else ""
        yield f"{name}, submitted", launcher.submit(SUBMITTED, text)._asdict()
        yield f"{name}, version", answer(api.version)
        yield f"{name}, nodes", answer(api.nodes)
        yield f"{name}, job", answer(partial(api.job, "s.7"))
        yield f"{name}, found", answer(partial(launcher.find, of_here))
        yield f"{name}, listed", told(RayScheduler(here.address).jobs(["s.7", "s.9"]))
        yield f"{name}, cancelled", answer(partial(RayScheduler(here.address).cancel, of_here, ["s.7_0"]))
        yield f"{name}, limits", answer(lambda: launcher.limits()._asdict())
    here.replies.clear()
    here.location = "/login?next=x"
    here.replies["any"] = (307, "")
    yield "login", answer(api.version)
    here.replies.clear()
    here.location = ""
    for job in ("s.7", "s.9", "a b/c"):
        yield f"{job}, listed", told(RayScheduler(here.address).jobs([job, job]))
        yield f"{job}, cancelled", answer(partial(RayScheduler(here.address).cancel, of_here, [f"{job}_0"]))
    elsewhere = msgspec.structs.replace(of_here, controller="http://other:8265")
    yield (
        "not there, elsewhere",
        answer(partial(launcher.find, msgspec.structs.replace(elsewhere, name="s.9"))),
    )
    yield "cancelled elsewhere", answer(partial(RayScheduler(here.address).cancel, elsewhere, ["s.9_0"]))
    yield "log", api.log("s.7")
    nowhere = RayLauncher({"address": "http://127.0.0.1:9"}, 1)
    yield "nowhere", nowhere.submit(SUBMITTED, text)._asdict()
    yield "nowhere, version", answer(partial(Api("http://127.0.0.1:9").version))
    yield "nowhere, cancelled", answer(partial(RayScheduler("http://127.0.0.1:9").cancel, of_here, ["s.7_0"]))


def dashboards() -> Answers:
    """Answers of a dashboard, and what they mean."""
    return _calls(_dashboards)


def _clusters(here: Dashboard) -> Answers:
    estimates = {
        "none": None,
        "cpu": Estimate(host_memory_gib=5.0),
        "gpu": Estimate(num_gpus=2, host_memory_gib=20.0, stop_s=100.0),
    }
    subject = Subject({"seed": "0"}, {}, {}, cell="c")
    places: dict[str, list[dict[str, Any]]] = {
        "gpus": NODES,
        "cpus": NODES[1:2],
        "none": [],
        "unknown": [{"state": "ALIVE", "resources_total": {"GPU": 2.0}}],
    }
    for (place, nodes), settings in itertools.product(
        places.items(),
        (
            {},
            {"device": "h100", "gpus_per_node": 8},
            {"device": "cpu"},
            {"max_gpus": 16},
            {"memory_gib": 3.0},
        ),
    ):
        here.nodes = nodes
        launcher = RayLauncher({"address": here.address, **settings}, 1)
        yield f"{place} {settings}", (launcher.hardware(), answer(launcher.gpus))
        for name, estimate in estimates.items():
            for lacked in (0, 2):
                cells = [(subject, estimate, Shortfalls(lacked))]
                yield (
                    f"{place} {settings} {name} {lacked}",
                    launcher.resources(cells, known=[subject], chosen={"c": 2}),
                )
    for override in (
        {"gpus": 0.5},
        {"gpus": 2, "cpus": 3},
        {"memory_gib": 7.0},
        {"accelerator": "H100"},
        {"custom": {"tpu": 2.0, "a": 1.0}},
    ):
        launcher = RayLauncher({"address": here.address, "resources": [{"only": "seed=0", **override}]}, 1)
        yield (
            f"{override}",
            launcher.resources([(subject, estimates["gpu"], Shortfalls())], known=[subject], chosen={"c": 2}),
        )
    yield (
        "of the launcher",
        (
            launcher.name,
            launcher.attached,
            launcher.settle_s,
            launcher.logs("s", 7),
            RayLauncher({"address": "local"}, 1).attached,
            launcher.excluded([], open_ledger, "", quarantine_s=1.0, is_dry=True),
        ),
    )
    for found in (here.address, "head:8265", "http://me:secret@head"):
        os.environ["RAY_API_SERVER_ADDRESS"] = found
        yield f"found here {found != here.address and found}", answer(found_here)
    del os.environ["RAY_API_SERVER_ADDRESS"]
    for version in ("2.60.0", "2.59.1", "3.0.0rc1"):
        yield version, answer(partial(check_version, version))


def ray_clusters() -> Answers:
    """What a cluster has, and what workers request."""
    return _calls(_clusters)


def _probes(here: Dashboard) -> Answers:
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        open_ledger(str(store), create=True)
        mark = (store / "store.json").read_bytes()
        settings = ray_settings({"address": here.address, "python": sys.executable})

        def check(of: Any = settings, url: str = str(store), content: bytes | None = mark) -> object:
            found = str(answer(lambda: boot.check_environment(Api(here.address), of, url, content)))
            return (
                found.replace(folder, "FOLDER")
                .replace(platform.python_version(), "3.X")
                .replace(sys.executable, "PYTHON")
            )

        for url in (str(store), f"{folder}/other"):
            yield f"probed {url == str(store)}", check(url=url)
        yield "no python", check(msgspec.structs.replace(settings, python="/nowhere/python"))


def _checks(here: Dashboard) -> Answers:
    settings = ray_settings({"address": here.address, "python": "/opt/python"})
    packages_here = boot.our_packages()
    like = {
        "python": platform.python_version(),
        "packages": packages_here,
        "store": "mark",
        "problem": "",
    }
    like["executable"] = "/opt/python"

    def check(of: Any = settings, content: bytes | None = b"mark", **other: Any) -> object:
        here.prints = {**like, **other}
        found = str(answer(lambda: boot.check_environment(Api(here.address), of, "/store", content)))
        return found.replace(platform.python_version(), "3.X")

    yield "alike", check()
    yield "another Python", check(python="3.9.1")
    version = packages_here["msgspec"]
    yield (
        "another package",
        str(check(packages={**packages_here, "msgspec": "0.1"})).replace(version, "VERSION"),
    )
    lenient = msgspec.structs.replace(settings, accept=("msgspec",))
    yield "accepted", check(lenient, packages={**packages_here, "msgspec": "0.1"})
    yield "another store", check(store="x")
    yield "no store yet", check(content=None, store="x")
    yield "not seen", check(store="", problem="OSError: not mounted")
    for number in range(2):
        job = here.jobs[next(name for name in here.jobs)]
        job["end_time"] = 1000 * (time.time() - (70 if number == 0 else 50))
        yield f"again {number}", check(content=None)
    here.jobs.clear()
    for job in ({"status": "FAILED", "driver_exit_code": 2, "message": "odd"}, {"status": "STOPPED"}):
        here.replies.clear()
        boot.POLL_S, pause_s = 0.0, boot.POLL_S
        try:
            name = next(iter(here.asked), "")
            here.replies["POST /api/jobs/"] = (200, {"submission_id": "p"})
            here.replies["GET /api/jobs/p"] = (200, {"submission_id": "p", **job})
            here.replies["GET /api/jobs/p/logs"] = (200, {"logs": f"no mark {name}"})
            yield f"{job}", check()
        finally:
            boot.POLL_S = pause_s
    ours = {"msgspec": "0.19.0", "ray": "2.60.0", "torch": "2.9.0+cpu"}
    for python_there, packages in itertools.product(
        (platform.python_version(), "3.9.1"),
        ({}, {**ours, "torch": "2.9.0+cu128"}, {**ours, "ray": "2.59.0"}),
    ):
        theirs = {"python": python_there, "packages": packages}
        for accept in ((), ("ray", "torch")):
            found = boot.differences(ours, theirs, accept=accept)
            yield (
                f"{python_there[:3] == '3.9'} {packages} {accept}",
                [line.replace(platform.python_version(), "3.X") for line in found],
            )
    yield (
        "what is compared",
        [name for name in boot.our_packages() if name in ("ray", "msgspec", "textual", "obstore")],
    )


def probed_clusters() -> Answers:
    """The small job that tells what a cluster has, run here."""
    return _calls(_probes)


def checked_clusters() -> Answers:
    """The check of a cluster's Python, packages and store before a launch."""
    return _calls(_checks)


def starts() -> Answers:
    """How drivers and workers are started, and what the details of a driver's job mean."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        objects = open_ledger(str(store), create=True).objects
        code = Code(digest="d" * 64, import_paths=("checkout",))
        for name, submission in (
            ("no code", SUBMITTED),
            ("code", msgspec.structs.replace(SUBMITTED, code=code)),
        ):
            for settings in ({"address": "local"}, {"address": "http://head:8265", "python": "/opt/python"}):
                text = RayLauncher(settings, 1).text(
                    submission, sweep="s", store=str(store), code=store, logs=store
                )
                request = json.loads(text.replace(folder, "FOLDER").replace(sys.executable, "PYTHON"))
                words = _without_programs(shlex.split(request.pop("entrypoint")))
                yield f"text {name} {settings}", (request, words)
        started: list[Any] = []

        class Actors:
            """Keeps what Ray would be asked for."""

            def monitor(self) -> dict[str, str]:
                return {"RAY_memory_usage_threshold": "0.9"}

            def start(self, *given: object, **more: object) -> None:
                started.append((*given, more))

        starter = boot.Starter(
            objects, "s", msgspec.structs.replace(SUBMITTED, code=code), 3, {"A": 1.5, "PYTHONUTF8": "0"}
        )
        for avoid in ((), ("n1",)):
            starter.start(Actors(), avoid=avoid)  # type: ignore[arg-type]
        for number, argv, environment, *more in started:
            words = [word.replace(folder, "FOLDER") for word in _without_programs(argv)]
            yield f"worker {number}", (words, environment, more)
    details = ("PENDING", "RUNNING", "SUCCEEDED", "STOPPED", "FAILED", None, "NEW")
    for word, code_of, message in itertools.product(
        details, (None, 0, 4, 75, 9), ("", "logs:\n node 1\nboom ", "Job supervisor actor died: x")
    ):
        job = scheduler.JobDetails(status=word, driver_exit_code=code_of, message=message, start_time=1.7e12)
        found = told(scheduler.seen_of(job))
        yield f"job {word} {code_of} {message}", {**found, "start": bool(found.get("start"))}
    here = f"embedded {platform.node()}"
    name = f"no-such-driver-{os.getpid()}"
    sleeper = subprocess.Popen(["sh", "-c", "sleep 60; true", name + "-runs"])
    try:
        for place, cluster in {
            "this": f"{here} {boot_id()} {pid_namespace()}",
            "another's": "embedded other b n",
            "another container's": f"{here} {boot_id()} n",
            "started again": f"{here} b n",
            "this machine": scheduler.this_machine(),
            "short": "embedded x",
        }.items():
            listing = RayScheduler(cluster).jobs([name, name + "-runs"])
            yield (
                f"embedded, {place}",
                [listing.problem.replace(platform.node(), "HERE")]
                if listing.problem
                else [told(each) for each in listing.seen.values()],
            )
            local = msgspec.structs.replace(SUBMITTED, name=name + "-runs", cluster=cluster)
            yield (
                f"embedded, {place}, found",
                str(answer(partial(RayLauncher({"address": "local"}, 1).find, local)))
                .replace(platform.node(), "HERE")
                .replace(name, "DRIVER"),
            )
    finally:
        sleeper.kill()
        sleeper.wait()


def _without_programs(words: Sequence[str]) -> list[str]:
    """Words of a command line, of the programs that are passed on it the last line alone."""
    return [f"PROGRAM {word.strip().rpartition(chr(10))[2]}" if "\n" in word else word for word in words]


def credentials() -> Answers:
    """Where a token and headers come from."""
    with tempfile.TemporaryDirectory() as folder, dashboard():
        file = Path(folder) / "token"
        for token, content in itertools.product((None, " mine \n"), (None, b" theirs\n", b"\xff")):
            os.environ.pop("RAY_AUTH_TOKEN", None)
            os.environ |= {"RAY_AUTH_TOKEN": token} if token else {}
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(file)
            file.unlink(missing_ok=True)
            if content is not None:
                file.write_bytes(content)
            yield f"{token!r} {content!r}", auth_token()
        for headers in ("", '{"a": "b"}', "{", '{"a": 1}', "[]"):
            os.environ["RAY_JOB_HEADERS"] = headers
            yield headers, answer(job_headers)
        for headers in ('{"Content-Length": "1"}', '{"a b": "c"}', '{"a": "é"}'):
            os.environ["RAY_JOB_HEADERS"] = headers
            yield headers, answer(lambda: Api("http://head").address)
        os.environ["RAY_JOB_HEADERS"] = ""
        for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            os.environ[variable] = "/nowhere/ca.pem"
            yield variable, str(answer(lambda: Api("https://head").address)).partition("[")[0]
            del os.environ[variable]
        for address in (
            "http://head:8265/",
            "https://head/ray/",
            "ftp://head",
            "http://head:0",
            "http://a:b@head",
            "http://head/?x",
            "x",
        ):
            yield address, answer(lambda to=address: Api(to).address)


ASKED: dict[str, Callable[[], Answers]] = {
    "dashboards": dashboards,
    "ray_clusters": ray_clusters,
    "probed_clusters": probed_clusters,
    "checked_clusters": checked_clusters,
    "starts": starts,
    "credentials": credentials,
}
