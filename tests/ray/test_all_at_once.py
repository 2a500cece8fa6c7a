"""One sweep over a bucket by Slurm, Ray, a local launch and two workers that were started by hand."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.testing import counted
from tests.bucket.buckets import Bucket, BucketSweep
from tests.bucket.server import start_server
from tests.cli.launches import Running, records, wait_for
from tests.conftest import TEMPORARY
from tests.launchers.on_scheduler import COUNT
from tests.ray.testbed import RayCluster
from tests.slurm.sweeps import SLURM
from tests.slurm.testbed import Testbed, Unavailable

CELLS, STEPS = 20, 12


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A real S3 server, with a bucket named ``all``, and the variables that lead to it."""
    pytest.importorskip("moto.server", reason="moto is not installed: no S3 server for these tests")
    server = start_server(tmp_path / "s3.log")
    server.make_bucket("all")
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yield variables
    server.process.kill()
    server.process.wait()


@pytest.fixture
def ray(environment: dict[str, str]) -> Iterator[RayCluster]:
    """A cluster of one node with a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="sweep-ray.", dir=TEMPORARY) as folder:
        running = RayCluster(Path(folder) / "c", ({"GPU": 1},), environment)
        try:
            running.up()
            yield running
        finally:
            running.down()


@pytest.fixture
def slurm(environment: dict[str, str]) -> Iterator[Testbed]:
    """A Slurm whose nodes reach the server."""
    try:
        running = Testbed.start(Path(tempfile.mkdtemp(prefix="sweep-slurm.", dir=TEMPORARY)))
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield running
    running.stop()


@pytest.mark.long
def test_slurm_ray_local_and_two_workers_by_hand_finish_one_sweep_and_do_each_cell_once(
    ray: RayCluster, slurm: Testbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm.env.items():
        if os.environ.get(name) != value:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray.folder / "token"))
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "jobs.yaml").write_text(COUNT.format(cells=CELLS, steps=STEPS, step_s=0.4, stages="[count]"))
    on = BucketSweep(folder, Bucket("s3://all/runs", None, tmp_path))

    on("launch", "jobs.yaml", *SLURM, "launcher.max_running=2", "--only", "seed=0,1,2,3,4,5,6,7")
    by_ray = ("launcher=ray", f"launcher.address={ray.address}", "launcher.max_workers=1")
    on("launch", "jobs.yaml", *by_ray, timeout_s=240)
    caches = [tmp_path / f"bare{number}" for number in range(2)]
    bare = []
    for cache in caches:
        monkeypatch.setenv("SWEEP_CACHE", str(cache))
        bare.append(Running(elsewhere, Path("s3://all/runs"), ("work", "jobs", "--store", "s3://all/runs")))
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    local = on("launch", "jobs.yaml", "launcher.workers=1", "launcher.snapshot=true", timeout_s=300)
    assert f"{CELLS} done" in local
    ends = [each.end(120) for each in bare]
    assert [code for code, _ in ends] == [0, 0], ends

    wait_for(lambda: not slurm.job_states(), timeout_s=120)
    assert on.json("status", "jobs")["counts"] == {"done": CELLS}
    store = on.store
    claims = records(store, "claim.json")
    assert sorted(Counter(claim["cell"] for claim in claims).values()) == [1] * CELLS
    owners = Counter(claim["owner"]["cluster"] for claim in claims)
    assert set(owners) == {"testbed", ray.address, "local"}, owners
    assert [sum("succeeded" in line for line in said.splitlines()) > 0 for _, said in ends] == [True, True]
    # The table is that of a run in which nothing else happens.
    calm = BucketSweep(folder, Bucket("s3://all/calm", None, tmp_path), node="calm")
    calm("launch", "jobs.yaml", "count.step_s=0", "launcher.snapshot=true", timeout_s=240)
    tables = [
        {int(row["seed"]): row["digest"] for row in each.json("collect", "jobs")} for each in (on, calm)
    ]
    assert tables[0] == tables[1] == {seed: counted(seed, STEPS) for seed in range(CELLS)}
