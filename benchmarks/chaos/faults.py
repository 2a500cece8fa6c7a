"""What is done to a running sweep. Each fault strikes once; most are undone later."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from chaos.places import Place

LEASE_S = 6
"""The lease of rounds in which processes are stopped, in seconds."""

WORDS = (
    ("orchestrator.launchers.ray.driver", "driver"),
    ("orchestrator.launchers.slurm.job", "job"),
    ("orchestrator.launchers.ray.", "job"),
    ("orchestrator.store.broker", "broker"),
    ("launch", "launch"),
)
"""Words of a command line to what the process is. The records show which of the others run stages."""


class Strike(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One fault.

    Attributes:
        at_s: Unix time.
        what: kind of the process, node or file system that was hit.
        pid: of the process, 0 for none.
        recovery_s: seconds until the attempt after the one that was hit; None if no attempt was.
    """

    at_s: float
    what: str
    pid: int = 0
    recovery_s: float | None = None


class Struck(NamedTuple):
    """A fault, and how it is undone.

    Attributes:
        strike: the fault.
        after_s: seconds until `undo`.
        undo: None if there is nothing to undo.
    """

    strike: Strike
    after_s: float = 0.0
    undo: Callable[[], object] | None = None


def processes(place: Place) -> dict[int, str]:
    """Return the processes of a round, each with what it is."""
    mark = place.folder.name.encode()
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes()
            if words and (mark in words or mark in (path / "environ").read_bytes()):
                text = words.replace(b"\0", b" ").decode(errors="replace")
                found[int(path.name)] = next((what for word, what in WORDS if word in text), "process")
    found.pop(os.getpid(), None)
    return found


def attempts(store: Path) -> Iterator[tuple[Path, dict[int, str]]]:
    """Yield the folder of each attempt, and its processes, each with what it is."""
    for path in store.glob("records/*/*/*/claim.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            pids = {int(json.loads(path.read_bytes())["owner"]["process"]["pid"]): "worker"}
            beat = path.with_name("heartbeat.json")
            child = json.loads(beat.read_bytes())["child"] if beat.exists() else None
            yield path.parent, pids | ({int(child["pid"]): "stage"} if child else {})


def kill(place: Place, dice: random.Random) -> Struck | None:
    """Kill any process of the sweep; the one at which a person waits, once in ten times."""
    found = processes(place)
    if set(found.values()) <= {"launch"}:
        return None  # it has hardly begun
    is_launch = "launch" in found.values() and dice.random() < 0.1
    found = {pid: what for pid, what in found.items() if (what == "launch") is is_launch}
    pid = dice.choice(sorted(found))
    return Struck(signalled(pid, found[pid], signal.SIGKILL))


def kill_train(place: Place, dice: random.Random) -> Struck | None:
    """Kill the process of a training."""
    running = []
    for folder, _ in attempts(place.store):
        if folder.parents[1].name == "train" and not (folder / "end.json").exists():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                running.append(json.loads((folder / "heartbeat.json").read_bytes())["child"]["pid"])
    return Struck(signalled(dice.choice(running), "training", signal.SIGKILL)) if running else None


def stop(place: Place, dice: random.Random) -> Struck | None:
    """Stop a worker for longer than its lease; what goes on afterwards must not count."""
    workers = [
        json.loads((folder / "claim.json").read_bytes())["owner"]["process"]["pid"]
        for folder, _ in attempts(place.store)
        if not (folder / "end.json").exists()
    ]
    alive = [pid for pid in workers if pid in processes(place)]
    if not alive:
        return None
    pid = dice.choice(alive)
    strike = signalled(pid, "worker", signal.SIGSTOP)
    return Struck(strike, 3.0 * LEASE_S, lambda: signalled(pid, "worker", signal.SIGCONT))


def lose_node(place: Place, dice: random.Random) -> Struck | None:
    """Kill a node with all that runs on it; it comes back."""
    at_s = time.time()
    if place.testbed is not None:
        up = [
            name
            for name, state in place.testbed.node_states().items()
            if state.startswith(("idle", "mix", "alloc"))
        ]
        if not up:
            return None
        place.testbed.lose(dice.choice(up))
        return Struck(Strike(at_s=at_s, what="node"), 5, place.testbed.revive)
    assert place.cluster is not None
    place.cluster.kill(dice.choice([name for name in place.cluster.processes if name != "head"]))
    return Struck(Strike(at_s=at_s, what="node"), 5, place.cluster.heal)


def lose_controller(place: Place, dice: random.Random) -> Struck | None:
    """Kill Slurm's controller, or the head of the Ray cluster; it comes back."""
    at_s = time.time()
    if place.testbed is not None:
        place.testbed.kill("slurmctld")
        return Struck(Strike(at_s=at_s, what="controller"), 5, place.testbed.revive)
    assert place.cluster is not None
    place.cluster.kill("head")
    return Struck(Strike(at_s=at_s, what="head"), 5, place.cluster.heal)


def fill_disk(place: Place, dice: random.Random) -> Struck | None:
    """Fill the store's file system; space comes back."""
    file = place.folder / "store/of somebody else"
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    return Struck(
        Strike(at_s=time.time(), what="disk"), dice.uniform(1, 4), lambda: file.unlink(missing_ok=True)
    )


def fail_files(place: Place, dice: random.Random) -> Struck | None:
    """Let all calls on the store fail for a while, as a file server does that restarts."""
    number = dice.choice((errno.EIO, errno.ESTALE, errno.ETIMEDOUT))
    return _controlled(place, f"{number} {place.folder}/store\n", "file system fails", dice.uniform(1, 4))


def slow_files(place: Place, dice: random.Random) -> Struck | None:
    """Let each call on the store take 50 ms for a while."""
    return _controlled(place, f"-50 {place.folder}/store\n", "file system is slow", dice.uniform(2, 5))


def shift_clock(place: Place, dice: random.Random) -> Struck | None:
    """Set the time of day of all processes hours ahead or back, for a while."""
    shift = dice.choice((-86400, -3600, 3600, 86400))
    return _controlled(place, f"clock {shift}\n", "clock", dice.uniform(1, 4))


def lose_reply(place: Place, dice: random.Random) -> Struck | None:
    """Let the bucket carry out the next conditional put, and the reply get lost; and kill a process."""
    assert place.bucket is not None
    place.bucket.proxy.fail("lost reply", "PUT", r"claim\.json|done/|end\.json")
    return kill(place, dice)


def _controlled(place: Place, text: str, what: str, seconds: float) -> Struck:
    control = place.folder / "control"
    _replace(control, text)
    return Struck(Strike(at_s=time.time(), what=what), seconds, lambda: _replace(control, ""))


def _replace(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text, encoding="utf-8")
    path.with_suffix(".new").rename(path)


def signalled(pid: int, what: str, number: signal.Signals) -> Strike:
    """Send a signal to a process that may be gone, and return the fault."""
    strike = Strike(at_s=time.time(), what=what, pid=pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return strike
