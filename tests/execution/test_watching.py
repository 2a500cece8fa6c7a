"""Rule 4: when an attempt may be called dead. The clock is the observer's own, and is given by the test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.records import Heartbeat, Owner, Process
from orchestrator.execution.liveness import UNREADABLE_LEASE_S, Watcher, next_lease_s
from orchestrator.provenance import is_gone, process_of
from orchestrator.store.evidence import inspect_owner
from tests.store.builders import claim, instance_of, owner, sweep_of

NODE = instance_of(sweep_of(1))
ELSEWHERE = "another boot"
NEVER = 4_000_000  # above the highest process id


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Observer:
    """A watcher of one attempt of an owner elsewhere."""

    def __init__(self, me: Owner | None = None) -> None:
        self.clock = Clock()
        self.watcher = Watcher(me or owner(), clock=self.clock)

    def after(self, seconds: float, attempt: Attempt) -> Liveness:
        self.clock.now_s += seconds
        return self.watcher(NODE, attempt).liveness


def beating(counter: int, of: Owner | None = None, *, lease_s: float = 90.0, number: int = 1) -> Attempt:
    beat = Heartbeat(counter=counter, phase="running") if counter else None
    return Attempt(number, claim(owner=of or owner(boot=ELSEWHERE), lease_s=lease_s), None, beat)


def test_an_owner_elsewhere_is_dead_after_its_lease_in_three_reads() -> None:
    seen = Observer()
    assert [seen.after(45, beating(1)) for _ in range(3)][-1] is Liveness.GONE


def test_two_reads_prove_nothing_however_far_apart() -> None:
    seen = Observer()
    assert seen.after(0, beating(1)) is Liveness.UNKNOWN
    assert seen.after(10_000, beating(1)) is Liveness.UNKNOWN
    assert seen.after(0, beating(1)) is Liveness.GONE


def test_many_reads_within_the_lease_prove_nothing() -> None:
    seen = Observer()
    assert {seen.after(0.89, beating(1)) for _ in range(100)} == {Liveness.UNKNOWN}


def test_each_new_count_begins_the_lease_anew() -> None:
    seen = Observer()
    assert {seen.after(80, beating(count)) for count in range(1, 50)} == {Liveness.UNKNOWN}
    assert {seen.after(80, beating(count)) for count in (50, 50)} == {Liveness.UNKNOWN}
    assert seen.after(80, beating(50)) is Liveness.GONE


def test_a_count_that_goes_back_is_a_change_too() -> None:
    """Only change means life: an observer may read an old copy after a new one."""
    seen = Observer()
    assert [seen.after(60, beating(count)) for count in (5, 4, 5, 4)] == [Liveness.UNKNOWN] * 4


def test_an_owner_that_never_beat_has_its_lease_from_the_first_look() -> None:
    seen = Observer()
    assert [seen.after(40, beating(0)) for _ in range(4)] == [Liveness.UNKNOWN] * 3 + [Liveness.GONE]


def test_the_lease_is_that_of_the_claim() -> None:
    seen = Observer()
    assert [seen.after(45, beating(1, lease_s=180.0)) for _ in range(5)][-2:] == [
        Liveness.UNKNOWN,
        Liveness.GONE,
    ]


def test_a_claim_that_cannot_be_read_has_the_default_lease() -> None:
    seen, attempt = Observer(), Attempt(1, problem="claim.json is unreadable")
    assert [seen.after(UNREADABLE_LEASE_S / 2 + 1, attempt) for _ in range(3)][-1] is Liveness.GONE


def test_attempts_are_watched_apart() -> None:
    seen = Observer()
    for _ in range(2):
        seen.after(50, beating(1))
    assert seen.after(0, beating(1, number=2)) is Liveness.UNKNOWN
    assert seen.after(0, beating(1)) is Liveness.UNKNOWN or seen.after(50, beating(1)) is Liveness.GONE


def test_each_lost_attempt_doubles_the_lease_up_to_a_cap() -> None:
    assert [next_lease_s(90, lost) for lost in range(6)] == [90, 180, 360, 720, 1440, 1800]


# Proof without waiting


def job(restarts: int, **rest: object) -> Owner:
    fields: dict[str, object] = {"cluster": "c", "job": "17", "array_index": 3, "slot": 0, **rest}
    return owner(boot=ELSEWHERE, restart_count=restarts, **fields)


def test_the_same_job_with_a_lower_restart_count_needs_no_wait() -> None:
    assert Observer(job(2)).after(0, beating(1, job(1))) is Liveness.GONE


@pytest.mark.parametrize(
    "other",
    [
        job(2),
        job(3),
        job(1, cluster="d"),
        job(1, job="18"),
        job(1, array_index=4),
        job(1, slot=1),
        job(1, job=""),
    ],
)
def test_any_other_job_is_waited_for(other: Owner) -> None:
    assert Observer(job(2)).after(0, beating(1, other)) is Liveness.UNKNOWN


def test_a_worker_of_a_drivers_earlier_start_is_waited_for_whatever_its_number() -> None:
    assert Observer(job(2, slot=1)).after(0, beating(1, job(1, slot=1))) is Liveness.UNKNOWN


def test_workers_without_a_scheduler_are_never_each_other_before_a_restart() -> None:
    me, other = job(2, job=""), job(1, job="")
    assert Observer(me).after(0, beating(1, other)) is Liveness.UNKNOWN


@pytest.fixture
def ended() -> Process:
    """A process of this machine that is gone."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    described = process_of(process.pid)
    process.kill()
    process.communicate()
    assert described is not None
    return described


@pytest.fixture
def living() -> Iterator[Process]:
    """A process of this machine that lives."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    described = process_of(process.pid)
    assert described is not None
    yield described
    process.kill()
    process.communicate()


def attempt_of(process: Process, child: Process | None) -> Attempt:
    held = claim(owner=Owner(host="here", process=process))
    return Attempt(1, held, None, Heartbeat(counter=1, phase="running", child=child))


def test_a_vanished_process_on_the_same_machine_needs_no_wait(ended: Process) -> None:
    assert Observer().after(0, attempt_of(ended, None)) is Liveness.GONE
    assert Observer().after(0, attempt_of(ended, ended)) is Liveness.GONE


def test_a_vanished_worker_whose_child_lives_is_waited_for(ended: Process, living: Process) -> None:
    assert Observer().after(0, attempt_of(ended, living)) is Liveness.UNKNOWN


def test_a_living_process_on_the_same_machine_is_alive(living: Process) -> None:
    assert Observer().after(0, attempt_of(living, None)) is Liveness.ALIVE


def test_a_process_id_that_was_given_to_another_process_is_not_the_owner(living: Process) -> None:
    reused = Process(boot_id=living.boot_id, namespace=living.namespace, pid=living.pid, start="1")
    assert Observer().after(0, attempt_of(reused, None)) is Liveness.GONE


@pytest.mark.parametrize("field", ["boot_id", "namespace"])
def test_a_process_of_another_machine_or_container_cannot_be_seen(ended: Process, field: str) -> None:
    fields = {name: getattr(ended, name) for name in ("boot_id", "namespace", "pid", "start")}
    assert is_gone(Process(**{**fields, field: "another"})) is None


def test_a_process_that_waits_to_be_reaped_is_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    described = process_of(process.pid)
    assert described is not None and process.stdin is not None
    process.kill()
    while is_gone(described) is False:
        pass
    assert process.returncode is None  # nobody has waited for it yet
    process.communicate()


def test_a_glance_never_calls_an_owner_elsewhere_dead() -> None:
    """Rule 10: only a watcher may, which looks again and again."""
    for _ in range(5):
        assert inspect_owner(NODE, beating(1, lease_s=0.0)).liveness is Liveness.UNKNOWN


def test_who_is_still_looked_at_and_has_not_beaten_is_suspected() -> None:
    seen = Observer()
    seen.after(0, beating(1))
    idle_s = seen.clock.now_s

    def suspects() -> bool:
        return seen.watcher.suspects(read_s=seen.clock.now_s, since_s=idle_s)

    seen.after(10, beating(1))
    assert suspects()
    seen.after(10, beating(2))
    assert not suspects()
    seen.clock.now_s += 10  # it has ended: nobody looks any more
    idle_s = seen.clock.now_s
    assert not suspects()


HIDDEN = """
import msgspec, sys
from orchestrator.core.records import Process
from orchestrator.provenance import is_gone
for line in sys.stdin:
    print(is_gone(msgspec.json.decode(line, type=Process)), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a /proc of its own")
def test_a_process_that_the_system_hides_from_us_is_not_gone(tmp_path: Path) -> None:
    """Another user's, with a /proc that shows each user no processes but his own (hidepid=2)."""
    python = "/usr/bin/python3"  # one that others may run
    paths = [str(Path(__file__).parents[2]), *(path for path in sys.path if path.endswith("site-packages"))]
    theirs = ["setpriv", "--reuid=64999", "--regid=64999", "--clear-groups"]
    sleepers = [subprocess.Popen([*theirs, "sleep", "60"]) for _ in range(3)]
    descriptions = [process_of(sleeper.pid) for sleeper in sleepers]
    assert None not in descriptions
    mine = ["setpriv", "--reuid=64998", "--regid=64998", "--clear-groups", python, "-c", HIDDEN]
    watcher = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh", *mine],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert watcher.stdin is not None and watcher.stdout is not None

    def judged(process: Process | None) -> str:
        assert watcher.stdin is not None and watcher.stdout is not None
        watcher.stdin.write(msgspec.json.encode(process).decode() + "\n")
        return watcher.stdout.readline().strip()

    try:
        assert judged(descriptions[0]) == "None"
        sleepers[1].kill()
        sleepers[1].wait()
        assert judged(descriptions[1]) == "True"
        assert judged(process_of(watcher.pid)) == "False"  # his own
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
        watcher.stdin.close()
        watcher.wait()
        watcher.stdout.close()
