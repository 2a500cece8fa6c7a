"""One real Ray cluster for the tests of this folder: a head and three nodes on loopback."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPORARY
from tests.ray.sweeps import OnRay
from tests.ray.testbed import RayCluster

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here go to one worker of xdist: there is one cluster. The hook sees other tests as well."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("ray"))


@pytest.fixture(scope="session")
def testbed() -> Iterator[RayCluster]:
    """A cluster. Tests take `cluster`: this one with all its nodes alive."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-ray.", dir=TEMPORARY))
    running = RayCluster(folder)
    try:
        running.up()
        yield running
    finally:
        running.down()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(testbed: RayCluster) -> Iterator[RayCluster]:
    """The cluster; what a test hurt is started again."""
    yield testbed
    testbed.heal()


@pytest.fixture
def jobs(cluster: RayCluster, tmp_path: Path) -> Iterator[OnRay]:
    """The command `sweep` outside the cluster, in a folder and with a store of the test's own."""
    folder = tmp_path / "project"
    folder.mkdir()
    on = OnRay(cluster, folder, tmp_path / "store")
    yield on
    on.end_drivers()
