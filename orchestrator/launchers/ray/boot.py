"""What a cluster must have before a launch, and how its nodes get the code of one.

Before anything is submitted, a small job compares the cluster's environment with the one here. The snapshot
of the code is imported where it lies, if it is in a folder that all nodes mount. From a bucket it takes two
steps, because a node need not have this package:

1. A few lines, passed on the command line, fetch the package. They need only Python and `obstore`.
2. The fetched package completes the node's copy of the snapshot, and runs the module from that copy: ``python
   -m orchestrator.launchers.ray.boot STORE DIGEST MODULE ...``.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from orchestrator import provenance
from orchestrator.errors import InfrastructureError, SchedulerUnavailable, SweepError, UserError
from orchestrator.jobs.records import Submission
from orchestrator.launchers.ray.actor import program
from orchestrator.launchers.ray.api import Api, JobDetails, Unanswered, Unreached, is_taken
from orchestrator.launchers.ray.lost_workers import Workers
from orchestrator.launchers.ray.settings import RaySettings
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.bucket import ARCHIVE
from orchestrator.store.ledger import open_ledger
from orchestrator.store.objects import ObjectStore

DISTRIBUTION = "polysweep"
PROBE, PROBE_S = "polysweep-probe-", 90.0
"""Start of the names of such jobs, and how long to wait for one, in seconds."""

TRIES = 8
"""How often such a job is submitted that something kills."""

NUM_NAMES, KEEP_S = 3, 60.0
"""How many names each user has for such jobs, and how long one that has ended is kept, in seconds."""

WORKER = "orchestrator.launchers.ray.worker"
"""The module that an actor runs."""

OVER = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
"""Ray's states of jobs that are over."""

POLL_S = 0.3
MARK = "polysweep-probe:"
"""Start of the line that such a job prints, before the nonce."""


def probe(mark: str, question: str) -> None:
    """Print what a cluster's Python is, as JSON behind a mark: versions, interpreter, and the store's mark.

    It must run with any version of Python, and prints as much as it can find out.

    Args:
        mark: start of the line.
        question: names of packages, the store's URL, and a nonce to print behind the mark, as JSON.
    """
    import importlib.metadata
    import json
    import platform
    import sys
    from pathlib import Path

    names, store, nonce = json.loads(question)
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    problem = seen = ""
    try:
        if "://" in store:
            import obstore.store

            seen = bytes(obstore.get(obstore.store.from_url(store), "store.json").bytes()).decode()
        else:
            seen = Path(store, "store.json").read_text(encoding="utf-8")
    except Exception as error:  # noqa: BLE001 - whatever keeps the store out of reach is the answer
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    known = {"python": platform.python_version(), "packages": found, "store": seen, "problem": problem}
    print(f"{mark}{nonce}{json.dumps({**known, 'executable': sys.executable})}")


def check_environment(api: Api, settings: RaySettings, store: str, mark: bytes | None) -> None:
    """Compare the cluster's environment with the one here.

    A difference would appear only hours later, in the first worker that gets resources. So the check runs
    before anything is recorded.

    Args:
        api: of the cluster.
        settings: of the launcher.
        store: its URL, which the cluster must reach too.
        mark: the content of the store's mark; None if there is no store yet.

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


WORKERS_EXTRAS = ("ray", "s3", "report", "sft", "wandb")
"""Extras of the distribution whose packages, if they are installed here, must be the same on the cluster."""


def our_packages() -> dict[str, str]:
    """Return the versions of what workers may import of what this package requires, Ray among them.

    What only readers of a store import, as ``sweep watch`` does, may differ.
    """
    try:
        required = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # this checkout is not installed
        required = ["ray", "msgspec"]
    extras = {text: re.search(r"extra == ['\"](\w+)", text) for text in required}
    needed = [text for text, extra in extras.items() if extra is None or extra[1] in WORKERS_EXTRAS]
    names = dict.fromkeys(re.split(r"[\s\[<>=!~;(]", text)[0] for text in needed)
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def differences(ours: Mapping[str, str], theirs: Mapping[str, Any], *, accept: Collection[str]) -> list[str]:
    """Return what differs: Python's minor version, and versions of packages but for a local suffix."""
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
        # builds for other devices differ in the suffix only, as in 2.9.0+cu128
        elif other.partition("+")[0] != version.partition("+")[0]:
            found.append(f"{name} {other} (here {version})")
    return found


def _ask(api: Api, settings: RaySettings, questions: list[Any]) -> dict[str, Any]:
    """Run the small job on the cluster, and return what it prints; again if something killed it.

    Raises:
        InfrastructureError: the cluster does not answer, or did not run the job.
    """
    for left in reversed(range(TRIES)):
        # Ray keeps the log of a deleted job, and appends to it for a new job of that name
        nonce = uuid.uuid4().hex
        words = [settings.python, "-c", program(probe, MARK), json.dumps([*questions, nonce])]
        job, logs = _ran(api, _submitted(api, shlex.join(words)))
        mark = MARK + nonce
        if lines := [line.removeprefix(mark) for line in logs.splitlines() if line.startswith(mark)]:
            found: dict[str, Any] = json.loads(lines[-1])
            return found
        if not (left and _was_killed(job)):
            break
    raise InfrastructureError(
        f"the Ray cluster did not run a small job of {settings.python!r} ({job.status or 'unknown'})",
        where=" ".join(f"{job.message or ''} {logs[-300:]}".split()),
        fix="launcher.python=PATH of the interpreter on the head node",
    )


def _ran(api: Api, name: str) -> tuple[JobDetails, str]:
    """Wait for a small job, and return what Ray knows of it and its log; neither if Ray has lost it."""
    deadline_s = time.monotonic() + PROBE_S
    job: JobDetails | None = None
    while time.monotonic() < deadline_s:
        job = api.job(name)
        if job is None or job.status in OVER:
            break
        time.sleep(POLL_S)
    return job or JobDetails(), api.log(name) if job is not None else ""


def _was_killed(job: JobDetails) -> bool:
    """Return whether a job was ended by a signal, or lost with its supervisor or its cluster."""
    code = job.driver_exit_code
    return job.status in (None, "FAILED") and (code is None or not 0 <= code < 128)


class _Accepted(msgspec.Struct, frozen=True):
    submission_id: str


def _submitted(api: Api, entrypoint: str) -> str:
    """Submit a small job and return its name."""
    for name in (
        _free_name(api),
        f"{PROBE}{uuid.uuid4().hex[:12]}",
    ):  # another launch may have taken the first name by now
        try:
            reply = api.submit({"entrypoint": entrypoint, "submission_id": name})
        except (Unreached, Unanswered) as error:
            raise SchedulerUnavailable(f"the Ray cluster does not answer: {error}") from error
        if reply.status == 200 or not is_taken(reply, name):
            break
    return api.expected(reply, "/api/jobs/", _Accepted).submission_id


def _free_name(api: Api) -> str:
    """Return a name for a small job, and delete earlier ones of this user.

    Each user has only a few names, which are queried one by one. A list of all jobs may hold tens of
    thousands of them. A job that has only just ended is kept: if it were deleted, Ray would mark it as
    failed.
    """
    who = hashlib.sha256(provenance.user().encode()).hexdigest()[:12]
    free = ""
    for number in range(NUM_NAMES):
        name = f"{PROBE}{who}-{number}"
        job = api.job(name)
        if job is not None and job.end_time and job.end_time / 1000 < time.time() - KEEP_S:
            with contextlib.suppress(Unreached, Unanswered):
                job = None if api.send("DELETE", f"/api/jobs/{name}").status == 200 else job
        if job is None:
            free = free or name
    return free or f"{PROBE}{uuid.uuid4().hex[:12]}"


def fetch(key: str, package: str, url: str, digest: str, *rest: str) -> None:
    """Fetch the package of a snapshot from a bucket, and replace this process by its second step.

    Processes of a node may run it at the same time: the folder appears by one atomic rename.

    Args:
        key: of the archive in the store.
        package: the archive's folder with the package.
        url: of the store.
        digest: of the snapshot.
        rest: the module to run and its arguments.
    """
    import io
    import os
    import shutil
    import sys
    import tarfile
    import tempfile
    from pathlib import Path

    import obstore.store

    home = Path(os.environ.get("SWEEP_CACHE") or "~/.cache/polysweep").expanduser() / "boot"
    place = home / digest
    if not place.is_dir():
        data = bytes(obstore.get(obstore.store.from_url(url), key).bytes())
        home.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=home))
        try:
            with tarfile.open(fileobj=io.BytesIO(data)) as files:
                ours = [file for file in files if file.name.startswith(f"{package}/")]
                files.extractall(fresh, ours, filter="data")
            try:
                fresh.rename(place)
            except OSError:
                if not place.is_dir():  # else another process was first
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    paths = [str(place / package), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    module = "orchestrator.launchers.ray.boot"
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, url, digest, *rest])


def begin(package: str, *rest: str) -> None:
    """Replace this process by a module, and put a folder before the import paths of the node, which stay."""
    import os
    import sys

    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execv(sys.executable, [sys.executable, "-P", "-m", *rest])


ENVIRONMENT = {"PYTHONUTF8": "1"}
"""What a command of `start_of` needs."""


def start_of(objects: ObjectStore, digest: str, module: str, *args: str) -> tuple[str, ...]:
    """Return the command, without its interpreter, that runs a module of a snapshot on any node.

    Args:
        objects: the store.
        digest: of the snapshot.
        module: what to run.
        args: its arguments.
    """
    # -P: otherwise a file in the working folder could take the place of a module
    if (code := objects.shared_folder(layout.code(digest))) is None:
        key = f"{layout.code_archive(digest)}/{ARCHIVE}"
        return "-P", "-c", program(fetch, key, layout.CODE_PACKAGE), objects.url, digest, module, *args
    return "-P", "-c", program(begin, str(code / layout.CODE_PACKAGE)), module, *args


@dataclass
class Starter:
    """Starts of workers, numbered from 1.

    Args:
        objects: the store.
        sweep: its name.
        submission: whose stages they claim.
        restart: how often the driver was restarted.
        environment: variables added to those of the node.
        num_started: the number of workers started so far.
    """

    objects: ObjectStore
    sweep: str
    submission: Submission
    restart: int
    environment: Mapping[str, object]
    num_started: int = 0

    def start(self, workers: Workers, *, avoid: Collection[str]) -> None:
        """Request the next worker from Ray.

        Args:
            workers: of the driver.
            avoid: ids of nodes that should not run it.
        """
        self.num_started += 1
        code = self.submission.code.digest if self.submission.code else ""
        args = (self.objects.url, self.sweep, str(self.submission.number))
        argv = start_of(self.objects, code, WORKER, *args, str(self.num_started), str(self.restart))
        environment = {name: str(value) for name, value in self.environment.items()}
        environment |= workers.monitor()
        environment |= ENVIRONMENT
        workers.start(self.num_started, list(argv), environment, self.submission.folder, avoid=avoid)


def main(argv: Sequence[str] | None = None) -> int:
    """Complete the node's copy of a snapshot, and replace this process by a module of it.

    Returns:
        An exit code, only if that fails.
    """
    url, digest, module, *args = sys.argv[1:] if argv is None else argv
    try:
        objects = open_ledger(url).objects
        if problem := snapshots.damage(objects, digest):  # verifies the node's copy, and repairs it
            is_there = objects.get(layout.STORE) is not None
            what = f"the code in the store is damaged: {problem}" if is_there else "no store is seen here"
            raise InfrastructureError(what, where=url)
        # The node's own import paths stay, and the first step's copy of the package does not.
        own = os.environ.get("PYTHONPATH", "").partition(os.pathsep)[2]
        package = snapshots.package_path(objects, digest)
        os.environ["PYTHONPATH"] = snapshots.python_path(package, {"PYTHONPATH": own})
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: the store does not answer: {error}", file=sys.stderr)
        return InfrastructureError.exit_code
    # -P: otherwise a file in the working folder could take the place of a module
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *args])


if __name__ == "__main__":
    sys.exit(main())
