"""What is no whole checkpoint is not carried to the bucket, and keeps nobody waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.saving import MANIFEST, write_checkpoint_manifest
from orchestrator.store import layout
from orchestrator.store.publishing import BucketPublisher
from tests.bucket.buckets import Bucket

KEY = "payload/count/abc/1"


def save(folder: Path) -> None:
    """Saves a checkpoint of two files, as a stage does."""
    place = folder / layout.CHECKPOINTS / "00000001"
    place.mkdir(parents=True)
    for name in ("x", "y"):
        (place / name).write_text("state")
    write_checkpoint_manifest(place, step=1, attempt=1)


def until(is_so: Callable[[], object], shipper: BucketPublisher) -> None:
    """Has the uploads go on until something is so."""
    until_s = time.monotonic() + 60
    while not is_so():
        shipper.step()
        time.sleep(0.01)
        assert time.monotonic() < until_s


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
    shipper = BucketPublisher(objects, KEY, adopted=None, warn=said.append)
    shipper.finish(lambda: None, checkpoints=True)
    there = bucket.open("elsewhere").trees([f"{KEY}/{layout.CHECKPOINTS}"])[f"{KEY}/{layout.CHECKPOINTS}"]
    assert set(there) == {f"00000001/{MANIFEST}", "00000001/x"} and not said


def test_a_log_that_arrives_does_not_have_a_checkpoint_sent_twice(bucket: Bucket) -> None:
    objects, said = bucket.open(), []
    folder = objects.workspace(KEY)
    save(folder)
    bucket.proxy.fail("403", "PUT", "00000001/y")
    shipper = BucketPublisher(objects, KEY, adopted=None, warn=said.append)
    until(lambda: said, shipper)
    (folder / layout.LOG).write_text("line")
    until(lambda: bucket.proxy.has_seen("PUT", layout.LOG), shipper)
    shipper.finish(lambda: None, checkpoints=True)
    sent = [
        path.rpartition("/")[2] for verb, path in bucket.proxy.seen if verb == "PUT" and "00000001/" in path
    ]
    assert sorted(sent) == [MANIFEST, "x", "y", "y"] and len(said) == 1


def test_a_log_that_the_store_refuses_delays_no_checkpoint(bucket: Bucket) -> None:
    objects, said = bucket.open(), []
    folder = objects.workspace(KEY)
    (folder / layout.LOG).write_text("line")
    bucket.proxy.fail("403", "PUT", layout.LOG)
    shipper = BucketPublisher(objects, KEY, adopted=None, warn=said.append, retry_s=600)
    until(lambda: said, shipper)
    save(folder)
    until(lambda: bucket.proxy.has_seen("PUT", f"00000001/{MANIFEST}"), shipper)
    assert said == [said[0]] and "the log" in said[0]
