"""One real Slurm for all tests of this folder; they skip, saying why, where it cannot be."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.testbed import Testbed, Unavailable

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before xdist looks for the mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests here go to one worker of xdist: there is one test bed. The hook sees other tests as well."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("slurm"))


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """A Slurm with the default knobs. Tests take `cluster`: this one without what another test left."""
    folder = Path(tempfile.mkdtemp(prefix="sweep-slurm.", dir="/tmp"))  # short: paths of sockets have a limit
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
