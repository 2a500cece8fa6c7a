"""Two real Slurms for the tests of this folder; they skip, saying why, where it cannot be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TEMPORARY
from tests.slurm.sweeps import OnSlurm
from tests.slurm.testbed import Testbed, Unavailable

HERE = Path(__file__).parent
SECOND = (
    "test_losses",
    "test_not_listed",
    "test_outages",
    "test_slurm_contract",
    "test_submitting",
    "test_two_nodes",
)
"""Half of the tests by their time, which is spent on waiting: each half has a worker and a test bed."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each half of the tests goes to one worker of xdist. The hook sees other tests as well."""
    for item in items:
        if HERE in item.path.parents:
            half = "slurm-2" if item.path.stem in SECOND else "slurm-1"
            item.add_marker(pytest.mark.xdist_group(half))


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """A Slurm with the default knobs. Tests take `cluster`: this one without what another test left."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-slurm.", dir=TEMPORARY))
    try:
        running = Testbed.start(folder)
    except Unavailable as reason:
        pytest.skip(str(reason))
    yield running
    running.stop()


@pytest.fixture
def cluster(testbed: Testbed) -> Iterator[Testbed]:
    """The Slurm with nothing queued and all alive: what a test left is cancelled, what it hurt revived."""
    yield testbed
    testbed.clear()


@pytest.fixture
def jobs(cluster: Testbed, tmp_path: Path) -> OnSlurm:
    """The command `sweep` on the test bed's login node, in a folder and with a store of the test's own."""
    folder = tmp_path / "project"
    folder.mkdir()
    return OnSlurm(cluster, folder, tmp_path / "store")
