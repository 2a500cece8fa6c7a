"""Sweeps on Ray whose nodes share nothing but a bucket: neither a folder nor a cache."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket.buckets import Bucket, BucketSweep
from tests.bucket.server import start_server
from tests.cli.launches import records, running_heartbeats, wait_for
from tests.conftest import TEMPORARY
from tests.execution.waiting import lives
from tests.launchers.on_scheduler import COUNT
from tests.ray.testbed import RayCluster

NODES = ({"GPU": 1}, {"GPU": 1})


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server, with a bucket named ``sweeps``, and the variables that lead to it."""
    pytest.importorskip("moto.server", reason="moto is not installed: no S3 server for these tests")
    server = start_server(tmp_path_factory.mktemp("s3") / "log")
    server.make_bucket("sweeps")
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def nodes(environment: dict[str, str]) -> Iterator[RayCluster]:
    """A cluster of two nodes with a cache each."""
    with tempfile.TemporaryDirectory(prefix="sweep-ray.", dir=TEMPORARY) as folder:
        running = RayCluster(Path(folder) / "c", NODES, environment)
        try:
            running.up()
            yield running
        finally:
            running.down()


@pytest.fixture
def outside(
    nodes: RayCluster, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BucketSweep:
    """The command outside the cluster, with a cache of its own, in a folder that the nodes do not use."""
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(nodes.folder / "token"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "jobs.yaml").write_text(COUNT.format(cells=1, steps=40, step_s=0.25, stages="[count]"))
    return BucketSweep(folder, Bucket(f"s3://sweeps/{tmp_path.name}", None, tmp_path))


@pytest.mark.long
def test_a_cell_that_started_on_one_node_goes_on_at_another_from_the_bucket(
    outside: BucketSweep, nodes: RayCluster
) -> None:
    words = ("launcher=ray", f"launcher.address={nodes.address}")
    assert "1 cell in 1 task" in outside("launch", "jobs.yaml", *words)
    wait_for(lambda: list(outside.store.glob("payload/*/*/1/checkpoints/*/manifest.json")), timeout_s=60)
    (beat,) = running_heartbeats(outside.store)
    first = next(name for name in ("node1", "node2") if f"/{name}/" in cache_of(beat["child"]["pid"]))
    assert "1 running" in outside("status", "jobs")
    nodes.kill(first)
    wait_for(lambda: not lives(beat["child"]["pid"]), timeout_s=60)
    wait_for(lambda: list(outside.store.glob("done/count/*.json")), timeout_s=90)
    starts = sorted(records(outside.store, "start.json"), key=lambda start: int(start["folder"].name))
    assert [bool(start["parent"]) for start in starts] == [False, True]
    ends = {end["folder"].name: end for end in records(outside.store, "end.json")}
    assert ends["2"]["outcome"] == "succeeded"
    wait_for(lambda: "1 done" in outside("status", "jobs"))
    said = outside("logs", "jobs", "seed0", "--job")
    assert "driver:" in said and "was lost" in said and "attempt 2 succeeded" in said
    assert '"entrypoint"' in (outside.store / "sweeps/jobs/logs/jobs-000001/job.json").read_text()
    nodes.start_node(first, NODES[int(first[-1]) - 1])


def cache_of(pid: int) -> str:
    """The folder of its node's cache, by a process's environment."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(v for v in variables if v.startswith(b"SWEEP_CACHE=")).decode()
