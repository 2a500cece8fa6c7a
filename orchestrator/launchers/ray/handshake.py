"""The version check of a cluster, before anything is queued: a small job there says what it has."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import re
import shlex
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from orchestrator.errors import InfrastructureError, UserError
from orchestrator.launchers.ray.api import Api, JobDetails, Unanswered, Unreached
from orchestrator.launchers.ray.settings import RaySettings

DISTRIBUTION = "polysweep"
PROBE, PROBE_S = "polysweep-probe-", 90.0
KEEP_S = 60.0
POLL_S = 0.3
MARK = "polysweep-probe:"

# It must run on whatever Python is there, and prints what it could find out.
_PROBE = """
import importlib.metadata as m, json, platform, sys
names, store = json.loads(sys.argv[1])
found = {}
for name in names:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: found[name] = None
problem = mark = ""
try:
    if "://" in store:
        import obstore, obstore.store
        mark = bytes(obstore.get(obstore.store.from_url(store), "store.json").bytes()).decode()
    else: mark = open(store + "/store.json").read()
except Exception as error: problem = type(error).__name__ + ": " + str(error)[:200]
print("MARK" + json.dumps(dict(python=platform.python_version(), packages=found, store=mark, problem=problem,
    executable=sys.executable)))
""".replace("MARK", MARK)


def check(api: Api, settings: RaySettings, store: str, mark: bytes | None) -> None:
    """Compares what the cluster has with what is here.

    Args:
        api: of the cluster.
        settings: of the launcher.
        store: its URL, which the cluster must reach too.
        mark: the content of the store's mark; None when there is no store yet.

    Raises:
        UserError: Python, Ray or a package differs, or the cluster does not see the store.
        InfrastructureError: the cluster does not answer.
    """
    ours = our_packages()
    theirs = _ask(api, settings, [sorted(ours), store])
    problems = differences(ours, theirs, accept=settings.accept)
    if problems:
        raise UserError(
            f"the Ray cluster at {api.address} has another environment: {'; '.join(problems)}",
            where=f"{theirs['executable']} there, Python {platform.python_version()} here",
            fix="install the same versions there, or launcher.python=PATH of the right one, "
            "or launcher.accept=[NAME, ...] for packages that may differ",
        )
    if mark is not None and theirs["store"].encode() != mark:
        raise UserError(
            f"the Ray cluster does not see the store {store}",
            where=theirs["problem"] or "there is another store at that place",
            allowed="a folder that all nodes mount at the same place, or s3:// or gs:// with credentials",
            fix="store.url=s3://BUCKET/PREFIX",
        )


def our_packages() -> dict[str, str]:
    """Returns the versions of what this package requires, Ray among them."""
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        required = ["ray", "msgspec"]
    names = [re.split(r"[\s\[<>=!~;(]", text)[0] for text in required if "extra ==" not in text]
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, Any], *, accept: Collection[str]) -> list[str]:
    """Says what differs: Python in its minor version, packages in their version but for a local suffix."""
    here, there = platform.python_version(), theirs["python"]
    found = []
    if here.split(".")[:2] != there.split(".")[:2]:
        found.append(f"Python {there} (here {here})")
    for name, version in sorted(ours.items()):
        other = theirs["packages"].get(name)
        if name in accept:
            continue
        if other is None:
            found.append(f"no {name} (here {version})")
        elif other.partition("+")[0] != version.partition("+")[0]:
            found.append(f"{name} {other} (here {version})")
    return found


def _ask(api: Api, settings: RaySettings, questions: Any) -> dict[str, Any]:
    name = f"{PROBE}{uuid.uuid4().hex[:12]}"
    entrypoint = shlex.join([settings.python, "-c", _PROBE, json.dumps(questions)])
    try:
        reply = api.send("POST", "/api/jobs/", {"entrypoint": entrypoint, "submission_id": name})
    except (Unreached, Unanswered) as error:
        raise InfrastructureError(f"the Ray cluster does not answer: {error}") from error
    if reply.status != 200:
        raise InfrastructureError(f"the Ray cluster takes no jobs: {reply.status} {str(reply.data)[:200]}")
    deadline_s = time.monotonic() + PROBE_S
    job = JobDetails()
    while time.monotonic() < deadline_s:
        job = next((job for job in api.jobs() if job.submission_id == name), JobDetails())
        if job.status in ("SUCCEEDED", "FAILED", "STOPPED"):
            break
        time.sleep(POLL_S)
    logs = api.log(name)
    _forget_old(api)
    lines = [line.removeprefix(MARK) for line in logs.splitlines() if line.startswith(MARK)]
    if not lines:
        raise InfrastructureError(
            f"the Ray cluster did not run a small job of {settings.python!r} ({job.status or 'unknown'})",
            where=" ".join(f"{job.message or ''} {logs[-300:]}".split()),
            fix="launcher.python=PATH of the interpreter on the head node",
        )
    said: dict[str, Any] = json.loads(lines[-1])
    return said


def _forget_old(api: Api) -> None:
    """Deletes the small jobs of earlier launches; of one that has just ended Ray would say that it failed."""
    with contextlib.suppress(Unreached, Unanswered, InfrastructureError):
        for job in api.jobs():
            name, end_ms = job.submission_id or "", job.end_time
            if name.startswith(PROBE) and end_ms and end_ms / 1000 < time.time() - KEEP_S:
                api.send("DELETE", f"/api/jobs/{name}")
