"""Memory as Ray's monitor counts it: from the kernel's files, and of processes that hold some."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.core.failure import Cause
from orchestrator.launchers.ray import worker
from orchestrator.launchers.ray.worker import MemoryJudge, Usage, last_fault, node_memory, worker_memory

MEMINFO = "MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable:    400 kB\nHugePages_Total:       0\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Usage(600 * 1024, 1000 * 1024)),
        ({"memory.max": "max", "memory.current": "1"}, Usage(600 * 1024, 1000 * 1024)),
        (
            {
                "memory.max": "500000",
                "memory.current": "400000",
                "memory.stat": "anon 5\ninactive_file 100000\nactive_file 50000\n",
            },
            Usage(250_000, 500_000),
        ),
        (
            {
                "memory/memory.limit_in_bytes": "500000",
                "memory/memory.usage_in_bytes": "400000",
                "memory/memory.stat": "total_inactive_file 100000\ntotal_active_file 1\ninactive_file 9\n",
            },
            Usage(299_999, 500_000),
        ),
        (
            {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"},
            Usage(600 * 1024, 1000 * 1024),
        ),
    ],
)
def test_memory_is_that_of_the_container_where_it_has_a_limit(
    tmp_path: Path, files: dict[str, str], expected: Usage
) -> None:
    for name, text in {"../../../proc/meminfo": MEMINFO, **files}.items():
        path = (tmp_path / "sys/fs/cgroup" / name).resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert node_memory(tmp_path) == expected


HOLD = """
import subprocess, sys, time
held = b"x" * (int(sys.argv[2]) * 2**20)
code = f"held = b'y' * ({sys.argv[3]} * 2**20); print(flush=True); input()"
child = subprocess.Popen([sys.executable, "-c", code])
print(flush=True)
child.wait()
"""


def test_a_worker_holds_what_it_and_all_that_it_started_hold() -> None:
    words = [sys.executable, "-c", HOLD, worker.WORKER.decode(), "30", "50"]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.readline()
        assert 80 <= worker_memory()[process.pid] / 2**20 < 160
    finally:
        process.communicate(b"\n")
    assert process.pid not in worker_memory()


def test_a_worker_whose_actor_lives_or_whose_node_has_memory_is_not_short_of_it(tmp_path: Path) -> None:
    lifeline, other = os.pipe()
    short = {worker.VARIABLE: "0.01"}
    assert MemoryJudge(lifeline, short)() is None
    os.close(other)  # as when the actor is gone
    assert MemoryJudge(lifeline, {worker.VARIABLE: "1.5"})() is None
    assert MemoryJudge(lifeline, {**short, "RAY_memory_monitor_refresh_ms": "0"})() is None
    shortage = MemoryJudge(lifeline, short)()
    assert shortage is not None and shortage.cause is Cause.PREEMPTED  # this process is no worker
    assert "Ray's memory monitor ended its worker" in shortage.message
    os.close(lifeline)


def test_the_last_fault_counts_for_workers_that_ran_then_and_not_for_their_successors(tmp_path: Path) -> None:
    now_s = time.monotonic()
    (tmp_path / "ledger").write_text(f"{now_s} 500")
    with (tmp_path / "ledger").open("rb") as ledger:
        assert last_fault(ledger.fileno(), now_s - 1) == 500
        assert last_fault(ledger.fileno(), now_s + 1) == 0
    (tmp_path / "ledger").write_text(f"{now_s - worker.RECENT_S - 1} 500")
    with (tmp_path / "ledger").open("rb") as ledger:
        assert last_fault(ledger.fileno(), now_s - 100) == 0
