"""Unmodified Hydra apps as workers of a real Ray cluster, whose nodes have the app's variables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps import app
from tests.apps.there import assert_a_task_sees_what_it_sees_here, assert_an_app_goes_on_from_its_checkpoint
from tests.conftest import TEMPORARY
from tests.ray.sweeps import OnRay
from tests.ray.testbed import RayCluster


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayCluster]:
    """A cluster of one node."""
    with tempfile.TemporaryDirectory(prefix="sweep-ray.", dir=TEMPORARY) as folder:
        running = RayCluster(Path(folder) / "c", ({"GPU": 1},), app.ENVIRONMENT)
        try:
            running.up()
            yield running
        finally:
            running.down()


@pytest.fixture
def there(nodes: RayCluster, tmp_path: Path) -> Iterator[OnRay]:
    """The command of a user outside of the cluster."""
    folder = tmp_path / "project"
    folder.mkdir()
    on = OnRay(nodes, folder, tmp_path / "store")
    on.env = {**on.env, **app.ENVIRONMENT, "PATH": app.environment()["PATH"]}
    yield on
    on.end_drivers()


@pytest.mark.long
def test_a_task_sees_what_it_sees_here(there: OnRay) -> None:
    assert_a_task_sees_what_it_sees_here(there, *there.words)


@pytest.mark.long
def test_an_app_goes_on_from_its_checkpoint(there: OnRay) -> None:
    assert_an_app_goes_on_from_its_checkpoint(there, *there.words)
