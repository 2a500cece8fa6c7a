"""The local launcher passes the suite of all launchers over a bucket as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.testing import LauncherContract
from tests.bucket.buckets import Bucket, BucketSweep
from tests.conftest import Sweep


@pytest.mark.long
class TestLocalOverABucket(LauncherContract):
    words = ("launcher=local", "launcher.workers=2")

    @pytest.fixture
    def on(self, bucket: Bucket, tmp_path: Path) -> Iterator[Sweep]:
        folder = tmp_path / "project"
        folder.mkdir()
        yield BucketSweep(folder, bucket)
