"""What a bucket must do as a folder does, and what a process and its broker owe each other."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import pytest

from orchestrator.manifest import scan
from orchestrator.store.bucket import RemoteStore
from orchestrator.store.objects import Listing
from orchestrator.testing import wait_for
from tests.bucket.buckets import Bucket

ODD = ("a b.txt", "é#%~*.txt", "x%20y", "[1].json", "q?&=+.t", "deep/er/file")


def broker_of(objects: RemoteStore) -> int:
    objects.get("nothing")
    process = objects.connection._process
    assert process is not None
    return process.pid


def test_records_are_created_once_replaced_listed_and_deleted(bucket: Bucket) -> None:
    objects = bucket.open()
    assert objects.get("a/b.json") is None and objects.list("a") == Listing((), ())
    assert objects.create("a/b.json", b"1") and not objects.create("a/b.json", b"2")
    objects.put("a/c/d.json", b"3")
    objects.put("a/c/d.json", b"4")
    objects.put("a/cc.json", b"")
    assert objects.get_many(["a/b.json", "a/c/d.json", "a/x"]) == {
        "a/b.json": b"1",
        "a/c/d.json": b"4",
        "a/x": None,
    }
    assert objects.list("a") == Listing(("b.json", "cc.json"), ("c",))
    assert objects.list_many(["a/c", "x"]) == {"a/c": Listing(("d.json",), ()), "x": Listing((), ())}
    assert objects.trees(["a", "a/c", "x"]) == {
        "a": {"b.json": 1, "c/d.json": 1, "cc.json": 0},
        "a/c": {"d.json": 1},
        "x": {},
    }
    objects.delete("a/c")
    objects.delete("a/c")
    objects.delete("a/b.json")
    assert objects.trees([""]) == {"": {"a/cc.json": 0}}


def test_the_age_of_an_object_is_by_the_clock_of_the_bucket(bucket: Bucket) -> None:
    objects = bucket.open()
    begun_s = time.monotonic()
    objects.put("old.json", b"1")
    assert 0 <= objects.age_s("old.json") <= 1 + time.monotonic() - begun_s  # dated to the second
    time.sleep(2.1)
    later_s = time.monotonic()
    objects.put("new.json", b"1")
    assert 2 <= objects.age_s("old.json") <= 1 + time.monotonic() - begun_s
    assert objects.age_s("new.json") <= 1 + time.monotonic() - later_s
    assert set(objects.trees([""])[""]) == {"old.json", "new.json"}  # the probes are gone
    with pytest.raises(OSError):
        objects.age_s("nothing.json")


def test_a_listing_of_more_than_a_page_is_whole(bucket: Bucket) -> None:
    objects = bucket.open()
    folder = objects.workspace("sweeps/many")
    for number in range(1100):
        (folder / f"{number:04d}").write_bytes(b"")
    objects.upload("sweeps/many")
    names = tuple(f"{number:04d}" for number in range(1100))
    assert objects.list("sweeps/many").files == names
    assert tuple(sorted(objects.trees(["sweeps"])["sweeps"])) == tuple(f"many/{name}" for name in names)
    objects.delete("sweeps/many")
    assert objects.trees([""]) == {"": {}}


def test_a_growing_object_is_read_from_where_one_left_off(bucket: Bucket) -> None:
    objects = bucket.open()
    assert objects.read_from("log", 0) == b""
    objects.put("log", b"one\n")
    assert objects.read_from("log", 0) == b"one\n" and objects.read_from("log", 4) == b""
    objects.put("log", b"one\ntwo\n")
    assert objects.read_from("log", 4) == b"two\n"
    assert objects.read_from("log", 4, 2) == b"tw" and objects.read_from("log", 0, 99) == b"one\ntwo\n"
    assert objects.read_from("log", 8, 5) == b"" == objects.read_from("none", 0, 5)


def test_files_come_back_as_they_were_whatever_their_names_and_sizes(bucket: Bucket) -> None:
    here, there = bucket.open("here"), bucket.open("there")
    folder = here.workspace("payload/a/b/1/output")
    for name in ODD:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "empty").write_bytes(b"")
    (folder / "large").write_bytes(os.urandom(20 * 2**20))  # in several parts
    here.upload("payload/a/b/1/output")
    fetched = there.fetch("payload/a/b/1/output", scan(folder))
    assert fetched != folder and scan(fetched) == scan(folder)


def test_a_forked_process_gets_a_broker_of_its_own(bucket: Bucket) -> None:
    objects = bucket.open()
    objects.put("from", b"parent")
    mine = broker_of(objects)
    pid = os.fork()
    if pid == 0:
        good = objects.get("from") == b"parent" and broker_of(objects) != mine
        os._exit(0 if good else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert objects.get("from") == b"parent" and broker_of(objects) == mine


def test_a_broker_outlives_what_is_sent_to_all_processes_of_a_job_and_ends_with_its_owner(
    bucket: Bucket,
) -> None:
    objects = bucket.open()
    pid = broker_of(objects)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        os.kill(pid, number)
    objects.put("last", b"word")
    assert broker_of(objects) == pid
    process = objects.connection._process
    objects.close()
    assert process is not None and process.returncode == 0


def test_a_call_whose_broker_dies_is_made_again_by_another(bucket: Bucket) -> None:
    objects = bucket.open()
    objects.put("x", b"1")
    pid = broker_of(objects)
    killing = kill_meanwhile(bucket, pid, "GET")
    assert objects.get("x") == b"1" and broker_of(objects) != pid
    killing.join()


def kill_meanwhile(bucket: Bucket, pid: int, method: str) -> threading.Thread:
    """Kills a broker while the server has its request for x."""
    bucket.proxy.hangs = "/x$"

    def kill() -> None:
        wait_for(lambda: bucket.proxy.has_seen(method, "/x$"))
        os.kill(pid, signal.SIGKILL)
        bucket.proxy.hangs = None

    bucket.proxy.seen.clear()
    thread = threading.Thread(target=kill)
    thread.start()
    return thread


def test_a_broker_that_always_dies_is_an_error(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = bucket.open()
    objects.close()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="broker died"):
        objects.get("x")


def test_a_create_whose_broker_dies_is_an_error_and_not_made_again(bucket: Bucket) -> None:
    objects = bucket.open()
    pid = broker_of(objects)
    killing = kill_meanwhile(bucket, pid, "PUT")
    with pytest.raises(OSError, match="broker died"):
        objects.create("x", b"1")
    killing.join()
    assert broker_of(objects) != pid


@pytest.mark.long
def test_a_server_that_takes_requests_and_never_answers_is_an_error_in_time(bucket: Bucket) -> None:
    objects = bucket.open()
    objects.put("key", b"1")
    bucket.proxy.hangs = ""
    start_s = time.monotonic()
    with pytest.raises(OSError, match=r"did not answer|timed out|sending request"):
        objects.put("key", b"2")
    assert time.monotonic() - start_s < 12
    bucket.proxy.hangs = None
    assert objects.get("key") in (b"1", b"2")


def test_records_are_put_while_files_are_on_their_way(bucket: Bucket) -> None:
    """A worker's heartbeats go on while it uploads: what is called meanwhile may itself call."""
    objects = bucket.open()
    folder = objects.workspace("payload/a/b/1/output")
    for number in range(12):
        (folder / str(number)).write_bytes(bytes(1000))
    beats: list[int] = []

    def keepalive() -> None:
        objects.put("heartbeat", str(len(beats)).encode())
        beats.append(len(beats))
        if len(beats) == 2:
            bucket.proxy.hangs = None

    bucket.proxy.hangs = "payload/"
    objects.upload("payload/a/b/1/output", keepalive=keepalive)
    assert len(beats) >= 2
    assert len(objects.trees(["payload"])["payload"]) == 12


def test_an_upload_that_is_no_longer_wanted_leaves_nothing_behind(bucket: Bucket) -> None:
    """The stage ended while a checkpoint of its was on the way: nothing of it may come after the deletion."""
    from orchestrator.saving import write_checkpoint_manifest
    from orchestrator.store.publishing import BucketPublisher

    objects, key = bucket.open(), "payload/stage/digest/1"
    folder = objects.workspace(key) / "checkpoints/00000001"
    folder.mkdir(parents=True)
    (folder / "state").write_text("x")
    write_checkpoint_manifest(folder, step=1, attempt=1)
    shipper = BucketPublisher(objects, key, adopted=None, warn=print)
    bucket.proxy.hangs = "state"
    shipper.step()
    beats: list[int] = []
    shipper.finish(lambda: beats.append(1), checkpoints=False)
    bucket.proxy.hangs = None
    assert beats and not (folder.parents[1] / ".shipping").exists()
    assert not any("manifest" in path for path in objects.trees([key])[key])
