"""A worker on a node that has nothing but the bucket fetches the code of the launch, and works from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.records import Done
from orchestrator.launchers.ray.boot import ENVIRONMENT, start_of
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.opening import open_objects
from tests.bucket.buckets import Bucket
from tests.execution.faults import order_for
from tests.store.builders import instance_of, seal, sweep_of
from tests.store.projects import repository


@pytest.mark.long
def test_a_worker_elsewhere_runs_the_code_of_the_launch(bucket: Bucket, tmp_path: Path) -> None:
    sweep = sweep_of(1)
    seal(bucket.url, sweep)
    code = snapshots.store(
        bucket.open(), snapshots.plan(bucket.open(), [str(repository(tmp_path / "checkout", tracked="1"))])
    )
    file = tmp_path / "order.json"
    file.write_bytes(msgspec.json.encode(order_for(bucket.url, sweep.name, code=code)))
    env = {**os.environ, **ENVIRONMENT, "SWEEP_CACHE": str(tmp_path / "bare")}
    (tmp_path / "tarfile.py").write_text("raise SystemExit('a file of the user in place of a module')")

    start = start_of(bucket.open(), code.digest, "orchestrator.execution.main", str(file))
    done = subprocess.run([sys.executable, *start], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert "attempt 1 succeeded" in done.stdout, done.stdout + done.stderr
    assert list((tmp_path / "bare/boot").glob(f"{code.digest}/polysweep/orchestrator"))
    node = instance_of(sweep)
    assert bucket.ledger().read(layout.done(node, 1), Done)[0] is not None


@pytest.mark.parametrize("own", ["", "/node/a:/node/b"])
def test_the_import_paths_of_a_node_stay_behind_the_code_of_the_launch(
    bucket: Bucket, tmp_path: Path, own: str
) -> None:
    project = [str(repository(tmp_path / "checkout", tracked="1"))]
    for objects in (bucket.open(), open_objects(str(tmp_path / "store"))):
        code = snapshots.store(objects, snapshots.plan(objects, project))
        env = {**os.environ, "SWEEP_CACHE": str(tmp_path / "bare"), "PYTHONPATH": own}
        command = [sys.executable, *start_of(objects, code.digest, "site")]  # prints the import paths
        said = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True).stdout
        paths = [line.strip(" ',") for line in said.splitlines()]
        assert paths[1].endswith(f"{code.digest}/{layout.CODE_PACKAGE}"), said
        assert paths[2 : 4 if own else 2] == [*filter(None, own.split(":"))], said
        assert sum(path.endswith(f"/{layout.CODE_PACKAGE}") for path in paths) == 1, said
