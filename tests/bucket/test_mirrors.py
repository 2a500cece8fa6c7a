"""Mirrors of a sweep whose store is a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bucket.buckets import Bucket
from tests.trackers.conftest import TWO
from tests.trackers.mlflow_server import SmallMlflow


@pytest.mark.long
def test_mirrors_follow_a_bucket_and_a_sync_on_another_machine_finds_nothing_missing(
    sweep: Any, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SmallMlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    (sweep.folder / "two.yaml").write_text(TWO)
    url = f"store.url={bucket.url}"
    said = sweep("launch", "two.yaml", "tracker=[wandb,mlflow,tensorboard]", url)
    assert "MLflow: 2 runs" in said and "W&B: 2 runs kept here" in said
    assert f"tensorboard --logdir {sweep.folder / 'tensorboard/two'}" in said
    assert len(list((sweep.folder / "tensorboard/two").glob("*/events*"))) == 2
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "another"))
    targets = [word for name in ("wandb", "mlflow", "tensorboard") for word in ("--to", name)]
    assert sweep("sync", "two", *targets, url).count("nothing was missing") == 3
    server.close()
