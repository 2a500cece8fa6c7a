"""`sweep doctor` and `sweep nodes`: whether machines and the store are fit, and nodes that are left out."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from orchestrator.api.state import open_view
from orchestrator.cli.output import add_store, existing_store, no_overrides, print_json, print_table
from orchestrator.core.nodes import NodeReport
from orchestrator.core.settings import Policy, split_store
from orchestrator.errors import InfrastructureError, SweepError, UserError, counted, nearest, one_line
from orchestrator.jobs.nodes import NodeReports
from orchestrator.launchers.local import available_cpus, visible_gpus
from orchestrator.launchers.slurm.query import slurm
from orchestrator.registry import EXTRAS, install
from orchestrator.store import layout, opening
from orchestrator.store.ledger import open_ledger
from orchestrator.store.objects import ObjectStore, PosixStore
from orchestrator.store.opening import open_objects, store_url

PACKAGES = (
    "hydra-core",
    "msgspec",
    "submitit",
    "ray",
    "torch",
    "transformers",
    "datasets",
    "wandb",
    "pyarrow",
)
"""Packages whose versions are shown. Those of the engine must be installed."""
RACERS = 8
"""Writers that race to create one key."""
HUB = ("huggingface.co", 443)
"""Host and port of the hub that models and data come from."""
RAY_PORT = 8265
"""Port of a Ray cluster's dashboard, which accepts jobs."""
TORCH_S = 120.0
"""Seconds within which torch must find its GPUs; the first import from a network file system is slow."""
SLURM_S = 10.0
"""Seconds within which Slurm must answer."""


class Check(NamedTuple):
    """The result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is as it should be; None for something that is absent and not needed everywhere.
        detail: what was found.
    """

    name: str
    ok: bool | None
    detail: str


def configure_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_store(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run_doctor(args: argparse.Namespace) -> int:
    """Run all checks, print them, and return 1 if one failed."""
    checks = list(_checks(store_url(no_overrides(args.words))))
    if args.json:
        print_json([check._asdict() for check in checks])
    else:
        for check in checks:
            mark = {True: "ok  ", False: "FAIL", None: "--  "}[check.ok]
            print(f"{mark}  {check.name:<18} {check.detail}")
    return 1 if any(check.ok is False for check in checks) else 0


def _checks(url: str) -> Iterator[Check]:
    """Yield the result of each check, as soon as it is there."""
    yield Check(
        "python", sys.version_info >= (3, 11), f"{platform.python_version()}, 3.11 or newer is needed"
    )
    for name in PACKAGES:
        yield _package(name)
    yield Check("cpus", True, f"{available_cpus()} usable")
    gpus = visible_gpus()
    yield Check(
        "gpus", True if gpus else None, ", ".join(gpus) if gpus else "none visible; stages run on the CPU"
    )
    yield _torch_gpus(gpus)
    yield _guarded("store", lambda: _store(url))
    yield from _access(url)
    yield _guarded("store semantics", lambda: _semantics(url))
    yield _slurm()
    yield _ray()
    yield _hub()


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Run a check; an error of the store becomes a failed check, so that the other checks still run."""
    try:
        return check()
    except (SweepError, OSError) as error:
        return Check(name, False, " ".join(str(error).split()))


def _package(name: str) -> Check:
    """Check that a package is installed."""
    try:
        return Check(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        extra = next((extra for extra, names in EXTRAS.items() if name in names), None)
        if extra is None:
            return Check(name, False, f"not installed: pip install {name}")
        return Check(name, None, f"not installed; what needs it: {install(extra)}")


def _torch_gpus(gpus: Sequence[str]) -> Check:
    """Check that torch sees the GPUs. A process of its own calls it: CUDA may hang, or abort the process."""
    if importlib.util.find_spec("torch") is None:
        return Check("torch's gpus", None, "torch is not installed")
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "orchestrator.sft.machine"],
            capture_output=True,
            text=True,
            timeout=TORCH_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("torch's gpus", False, f"torch does not answer within {TORCH_S:.0f} s")
    number, _, build = asked.stdout.strip().partition(" ")
    if asked.returncode != 0 or not number.isdigit():
        last = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        return Check("torch's gpus", False, f"torch cannot be imported: {last}")
    is_short = int(number) < len(gpus)
    why = ": stages on them would fail with cause bad_node" if is_short else ""
    return Check(
        "torch's gpus",
        False if is_short else True if gpus else None,
        f"torch {build} sees {number} of {len(gpus)}{why}",
    )


def _nearest_folder(objects: ObjectStore) -> Path | None:
    """Return the store's folder, or its nearest parent that exists; None for a bucket."""
    folder = objects.shared_folder("")
    while folder is not None and not folder.exists():
        folder = folder.parent
    return folder


def _store(url: str) -> Check:
    """Check that the store can be written, and that its disk has room."""
    objects, room, enough = open_objects(url), "", True
    if (folder := _nearest_folder(objects)) is not None:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            return Check("store", False, f"{folder} is no writable folder")
        free_gib = shutil.disk_usage(folder).free / 2**30
        room, enough = f", {free_gib:.0f} GiB free", free_gib > 1
    objects = open_ledger(url).objects
    state = "will be made by the first launch" if objects.get(layout.STORE) is None else "exists"
    return Check("store", enough, f"{url} ({state}){room}")


def _access(url: str) -> Iterator[Check]:
    """Yield who may write to the store's folder; nothing for a bucket or a folder that is not there."""
    if (root := open_objects(url).shared_folder("")) is not None:
        try:
            mode = root.stat().st_mode & 0o7777
            found = [*opening.problems(root)]
        except FileNotFoundError:
            return
        except OSError as error:
            mode, found = 0, [str(opening.refused(root, error) or error)]
        writers = "its group" if mode & 0o020 else "its owner alone (store.shared=true makes one for a group)"
        detail = (
            "; ".join(" ".join(each.split()) for each in found)
            or f"mode {mode:o}: may be written by {writers}"
        )
        yield Check("store access", not found, detail)


def _semantics(url: str) -> Check:
    """Check the guarantees that claims rely on, in a scratch folder beside the store or in the bucket.

    Workers claim a stage by creating a key. If two creates of one key could both succeed, two workers would
    run the same stage.
    """
    objects = open_objects(url)
    if (place := _nearest_folder(objects)) is None:
        scratch = f"probe-{uuid.uuid4().hex}"
        try:
            return _race([open_objects(f"{objects.url}/{scratch}") for _ in range(RACERS)])
        finally:
            objects.delete(scratch)
    with tempfile.TemporaryDirectory(prefix=".sweep-doctor-", dir=place) as folder:
        # The race needs the store's own file system: some network file systems do not create files
        # exclusively.
        return _race([PosixStore(Path(folder))] * RACERS)


def _race(stores: Sequence[ObjectStore]) -> Check:
    """Let several writers create the same key, 20 times; then check replace, list and delete.

    Args:
        stores: one for each writer.
    """
    store = stores[0]
    with ThreadPoolExecutor(RACERS) as pool:
        for number in range(20):
            wins = pool.map(lambda n, k=number: stores[n].create(f"key-{k}", str(n).encode()), range(RACERS))
            if sum(wins) != 1:
                return Check("store semantics", False, "two writers created one key: claims would not hold")
    store.put("key-0", b"replaced")
    good = store.get("key-0") == b"replaced" and len(store.list("").files) == 20
    store.delete("key-0")
    good = good and store.get("key-0") is None
    return Check(
        "store semantics", good, "create is exclusive among 8 writers, replace, list and delete work"
    )


def _slurm() -> Check:
    """Check that Slurm is installed and its controller answers."""
    if shutil.which("sbatch") is None:
        return Check("slurm", None, "no sbatch here; only launcher=slurm needs it")
    try:
        version = slurm("sinfo", "--version", timeout_s=SLURM_S).output.strip()
        alive = slurm("sinfo", "-ah", "-o", "%D", timeout_s=SLURM_S)
    except InfrastructureError as error:
        return Check("slurm", False, error.what)
    if alive.code != 0:
        return Check("slurm", None, f"{version} is installed, no controller answers")
    return Check("slurm", True, f"{version}, nodes: {' '.join(alive.output.split())}")


def _ray() -> Check:
    """Check that the dashboard of the Ray cluster in RAY_ADDRESS accepts connections."""
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("ray cluster", None, "RAY_ADDRESS is not set; only launcher=ray needs it")
    try:
        parts = urlsplit(address if "://" in address else f"ray://{address}")
        host, port = parts.hostname or "", parts.port or RAY_PORT
    except ValueError as error:
        return Check("ray cluster", False, f"RAY_ADDRESS={address} is no address: {error}")
    return Check("ray cluster", bool(host) and _reaches(host, port), address)


def _hub() -> Check:
    """Check whether the hub is reachable. Without it, models come from the cache."""
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "ON"):
        return Check("hub", None, "HF_HUB_OFFLINE is set: models come from the cache or a local path")
    if _reaches(*HUB):
        return Check("hub", True, f"{HUB[0]} answers")
    return Check("hub", None, f"{HUB[0]} is out of reach: models come from the cache or a local path")


def _reaches(host: str, port: int) -> bool:
    """Return whether a host accepts a connection within 3 seconds."""
    try:
        with socket.create_connection((host, port), timeout=3):
            return True
    except (OSError, UnicodeError):  # UnicodeError: the name cannot be a host name
        return False


def configure_nodes(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("sweep", nargs="?", help="only what was reported for it; default: for all sweeps")
    parser.add_argument("words", nargs="*", default=[], metavar="store.url=URL", help="the store")
    parser.add_argument("--clear", metavar="NODE", help="have a node be used again at once")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run_nodes(args: argparse.Namespace) -> int:
    """Print the nodes with their reports, or free one.

    Raises:
        UserError: nothing was reported about the node that is to be freed.
    """
    words = [word for word in (args.sweep, *args.words) if word is not None]
    url, names = split_store(words)
    if len(names) > 1:
        raise UserError(f"{names[1]!r}: one sweep at most", fix="sweep nodes [SWEEP] [store.url=URL]")
    ledger = existing_store([word for word in words if word not in names])
    policy, sweep = Policy(), ""
    if names:
        view = open_view(names[0], url)
        policy, sweep = view.policy, view.sweep.name
    nodes = NodeReports(ledger, policy.quarantine_s, is_reader=True)
    reports = nodes.read()
    if args.clear is not None:
        places = dict.fromkeys((report.cluster, report.node) for report in reports)
        found = [place for place in places if place[1] == args.clear]
        if not found:
            known = [node for _, node in places]
            raise UserError(f"nothing was reported about {args.clear!r}", allowed=nearest(args.clear, known))
        for place in found:
            nodes.clear(*place)
        print(f"{args.clear} is used again")
        return 0
    out = nodes.left_out() if reports else {}
    rows = _rows(reports, out, sweep)
    if args.json:
        print_json(rows)
        return 0
    print(f"{counted(len(out), 'node')} left out (policy.quarantine_s={policy.quarantine_s:g})")
    for row in rows:
        left = f"left out for {row['left_s'] / 60:.0f} more minutes" if row["left_s"] else "used"
        print(f"\n{row['node']} of {row['cluster']}: {left}")
        shown = [
            (
                each["kind"],
                each["cause"] or "-",
                each["attempt"] or "-",
                each["at"],
                one_line(each["why"], 90),
            )
            for each in row["reports"]
        ]
        print_table(("what", "cause", "attempt", "at", "why"), shown)
    return 0


def _rows(reports: list[NodeReport], out: Any, sweep: str) -> list[dict[str, Any]]:
    """Return each node with its reports, for scripts; those of one sweep, if it is named."""
    places: dict[tuple[str, str], list[NodeReport]] = {}
    for report in reports:
        if not sweep or report.sweep in (sweep, ""):
            places.setdefault((report.cluster, report.node), []).append(report)
    return [
        {
            "node": node,
            "cluster": cluster,
            "left_out": (cluster, node) in out,
            "left_s": round(out[cluster, node].left_s) if (cluster, node) in out else 0,
            "reports": [
                {
                    "kind": each.kind,
                    "cause": each.cause,
                    "sweep": each.sweep,
                    "attempt": each.attempt,
                    "why": each.why,
                    "by": each.by,
                    "at": each.at,
                }
                for each in found
            ],
        }
        for (cluster, node), found in places.items()
        if any(each.kind != "cleared" for each in found)
    ]
