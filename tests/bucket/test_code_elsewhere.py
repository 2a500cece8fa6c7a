"""A worker on a node that has nothing but the bucket fetches the code of the launch, and works from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from orchestrator.core.records import Done
from orchestrator.launchers.ray.boot import start_of
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from tests.bucket.buckets import Bucket
from tests.execution.faults import order_for
from tests.store.builders import instance_of, seal, sweep_of
from tests.store.projects import repository


def test_a_worker_elsewhere_runs_the_code_of_the_launch(bucket: Bucket, tmp_path: Path) -> None:
    sweep = sweep_of(1)
    seal(bucket.url, sweep)
    code = snapshots.store(
        bucket.open(), snapshots.plan(bucket.open(), [str(repository(tmp_path / "checkout", tracked="1"))])
    )
    file = tmp_path / "order.json"
    file.write_bytes(msgspec.json.encode(order_for(bucket.url, sweep.name, code=code)))
    env = {**os.environ, "SWEEP_CACHE": str(tmp_path / "bare")}

    start = start_of(bucket.open(), code.digest, "orchestrator.execution.main", str(file))
    command = [sys.executable, *start.argv]
    done = subprocess.run(
        command, env={**env, **start.environment}, cwd=tmp_path, capture_output=True, text=True
    )
    assert "attempt 1 succeeded" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "bare/boot").glob(f"{code.digest}/polysweep/orchestrator"))
    node = instance_of(sweep)
    assert bucket.ledger().read(layout.done(node, 1), Done)[0] is not None
