from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket.buckets import Bucket
from tests.bucket.server import Proxy, Server, start_server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in Path(str(item.path)).parents:
            item.add_marker(pytest.mark.xdist_group("s3"))  # they share one server


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """moto's server, for all tests of this process."""
    pytest.importorskip("moto.server", reason="moto is not installed: no S3 server for these tests")
    server = start_server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture
def proxy(s3: Server) -> Iterator[Proxy]:
    proxy = Proxy(s3.port)
    yield proxy
    proxy.is_down = True
    proxy.hangs = None
    proxy.close()


@pytest.fixture
def bucket(s3: Server, proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket behind the proxy, the environment that leads to it, and a cache of its own."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.make_bucket(name)
    for variable in list(os.environ):
        if variable.startswith(("AWS_", "GOOGLE_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    bucket = Bucket(f"s3://{name}/runs", proxy, tmp_path)
    yield bucket
    for objects in bucket.opened:
        objects.close()
