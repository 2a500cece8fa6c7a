"""What is no whole checkpoint is not carried to the bucket, and keeps nobody waiting."""

from __future__ import annotations

import pytest

from orchestrator.execution.publishing import BucketPublisher
from orchestrator.stage import MANIFEST, write_checkpoint_manifest
from orchestrator.store import layout
from tests.bucket.buckets import Bucket

KEY = "payload/count/abc/1"


@pytest.mark.parametrize("harm", ["", '{"mine": 1}', "file gone", "other step"])
def test_a_manifest_that_tells_of_no_whole_checkpoint_is_passed_over(bucket: Bucket, harm: str) -> None:
    objects, said = bucket.open(), []
    folder = objects.workspace(KEY)
    for step in (1, 2):
        place = folder / layout.CHECKPOINTS / f"{step:08d}"
        place.mkdir(parents=True)
        (place / "x").write_text("state")
        write_checkpoint_manifest(place, step=step, attempt=1)
    if harm == "file gone":
        (place / "x").unlink()
    elif harm == "other step":
        (place / MANIFEST).unlink()
        write_checkpoint_manifest(place, step=7, attempt=1)
    else:
        (place / MANIFEST).write_text(harm)
    shipper = BucketPublisher(objects, KEY, adopted=None, complain=said.append)
    shipper.finish(lambda: None, checkpoints=True)
    there = bucket.open("elsewhere").trees([f"{KEY}/{layout.CHECKPOINTS}"])[f"{KEY}/{layout.CHECKPOINTS}"]
    assert set(there) == {f"00000001/{MANIFEST}", "00000001/x"} and not said
