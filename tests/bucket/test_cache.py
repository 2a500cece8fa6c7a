"""The node-local cache: nothing is transferred twice, nothing damaged is used, nothing in use is removed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.manifest import File, damage, scan
from orchestrator.store import cache as caches
from orchestrator.store.bucket import RemoteStore
from tests.bucket.buckets import Bucket
from tests.bucket.server import Proxy

PREFIX = "payload/stage/digest/1/output"


def product(bucket: Bucket, prefix: str = PREFIX, size: int = 1000) -> tuple[File, ...]:
    """Leaves four files in the store, made on another node."""
    objects = bucket.open("maker")
    folder = objects.workspace(prefix)
    for number in range(4):
        (folder / f"{number}.bin").write_bytes(os.urandom(size))
    objects.upload(prefix)
    return scan(folder)


def transfers(proxy: Proxy, method: str) -> list[str]:
    """The names of the files that were transferred."""
    found = [path.rpartition("/")[2] for verb, path in proxy.seen if verb == method and ".bin" in path]
    proxy.seen.clear()
    return sorted(found)


ALL = ["0.bin", "1.bin", "2.bin", "3.bin"]


def test_an_interrupted_upload_goes_on_with_what_is_missing(bucket: Bucket) -> None:
    objects = bucket.open()
    folder = objects.workspace(PREFIX)
    for name in ALL:
        (folder / name).write_bytes(os.urandom(100))
    bucket.proxy.fail("reset before", "PUT", "2.bin", times=3)
    with pytest.raises(OSError):
        objects.upload(PREFIX)
    assert set(transfers(bucket.proxy, "PUT")) == set(ALL)
    objects.upload(PREFIX)
    assert transfers(bucket.proxy, "PUT") == ["2.bin"]
    objects.upload(PREFIX)
    assert transfers(bucket.proxy, "PUT") == []


def test_an_interrupted_download_goes_on_with_what_is_missing(bucket: Bucket) -> None:
    files, objects = product(bucket), bucket.open()
    bucket.proxy.fail("500", "GET", "2.bin", times=9)
    with pytest.raises(OSError):
        objects.fetch(PREFIX, files)
    assert set(transfers(bucket.proxy, "GET")) == set(ALL)
    folder = objects.fetch(PREFIX, files)
    assert transfers(bucket.proxy, "GET") == ["2.bin"] and damage(folder, files) is None
    bucket.open().fetch(PREFIX, files)  # another process of the same node
    assert transfers(bucket.proxy, "GET") == []


@pytest.mark.parametrize("harm", ["cut short", "changed", "deleted"])
def test_a_damaged_copy_is_fetched_again(bucket: Bucket, harm: str) -> None:
    files, objects = product(bucket), bucket.open()
    path = objects.fetch(PREFIX, files) / "1.bin"
    transfers(bucket.proxy, "GET")
    match harm:
        case "cut short":
            path.write_bytes(path.read_bytes()[:-1])
        case "changed":
            path.write_bytes(bytes(1000))
        case "deleted":
            path.unlink()
    folder = objects.fetch(PREFIX, files)
    assert transfers(bucket.proxy, "GET") == ["1.bin"] and damage(folder, files) is None


def test_what_is_damaged_in_the_store_is_damaged_here(bucket: Bucket) -> None:
    files = product(bucket)
    objects = bucket.open()
    objects.put(f"{PREFIX}/1.bin", bytes(1000))
    assert damage(objects.fetch(PREFIX, files), files) == "1.bin has other content than recorded"
    objects.delete(f"{PREFIX}/1.bin")
    assert damage(objects.fetch(PREFIX, files), files) == "1.bin is missing"


FETCH = """
import sys, msgspec
from pathlib import Path
from orchestrator.manifest import File
from orchestrator.store.bucket import RemoteStore
url, home, prefix, files = sys.argv[1:]
RemoteStore(url, home=Path(home)).fetch(prefix, msgspec.json.decode(files, type=list[File]))
"""


def test_processes_of_a_node_fetch_once(bucket: Bucket) -> None:
    import msgspec

    files = product(bucket)
    transfers(bucket.proxy, "GET")
    bucket.proxy.latency_s = 0.2
    words = [bucket.url, str(bucket.folder / "cache"), PREFIX, msgspec.json.encode(files).decode()]
    both = [subprocess.Popen([sys.executable, "-c", FETCH, *words]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert transfers(bucket.proxy, "GET") == ALL


def aged(objects: RemoteStore, prefix: str, seconds: float) -> Path:
    """Makes something look as if it was last used so long ago, by a process that is over."""
    objects.release(prefix)
    objects.cache._shrunk_s = -caches.SHRINK_S
    lock = caches._lock_of(objects.cache.root, caches._unit(prefix))
    then_s = time.time() - seconds
    os.utime(lock, (then_s, then_s))
    return objects.cache.folder(caches._unit(prefix))


def test_what_was_not_used_for_longest_goes_first_and_never_what_is_in_use(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(caches.LIMIT, str(9000 / 2**30))  # two products of 4000 bytes
    objects, other = bucket.open(), bucket.open()
    prefixes = [f"payload/stage/digest/{number}/output" for number in range(1, 5)]
    files = {prefix: product(bucket, prefix) for prefix in prefixes}
    folders = []
    for age, prefix in enumerate(prefixes[:3]):
        objects.fetch(prefix, files[prefix])
        folders.append(aged(objects, prefix, 1000 - age))
    other.fetch(prefixes[0], ())  # another process uses the oldest
    objects.fetch(prefixes[3], files[prefixes[3]])
    objects.cache._shrunk_s = -caches.SHRINK_S
    objects.cache.shrink()
    assert [folder.exists() for folder in folders] == [True, False, False]
    assert damage(objects.fetch(prefixes[1], files[prefixes[1]]), files[prefixes[1]]) is None


def test_a_limit_that_is_no_number_is_said(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(caches.LIMIT, "much")
    with pytest.raises(UserError, match="SWEEP_CACHE_GIB is 'much'"):
        bucket.open()


def test_an_attempt_starts_in_an_empty_folder_though_another_store_was_here(bucket: Bucket) -> None:
    (bucket.open().workspace("payload/stage/digest/1") / "log.txt").write_text("of a store that was deleted")
    assert not list(bucket.open().workspace("payload/stage/digest/1").iterdir())
