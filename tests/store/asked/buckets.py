"""Parts of stores in buckets that need no server: errors, archives and the cache of a node, as recorded."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.core.records import CodeFile
from orchestrator.store import cache
from orchestrator.store.bucket import _listing, _packed, _unpacked
from orchestrator.store.cache import Cache
from orchestrator.store.client import BrokerLost, Connection, Move, WireReply, WireRequest, frame
from orchestrator.store.code import PlannedFile
from tests.recording import Answers, answer
from tests.shared.asked.files import listed

TEXTS = (
    "<Code>NoSuchBucket</Code>",
    "The specified bucket does not exist",
    "Missing AWS credentials",
    "error: status code: 503 Slow Down: <Code>SlowDown</Code>",
    "status code: 500: x",
    "Generic error: HTTP error: error sending request\nmore",
    "",
    "\n \n",
    "x" * 300,
    "a line\nanother",
    "status code: 416 y",
)


def errors_of_buckets() -> Answers:
    """What the library's errors become."""
    broker = pytest.importorskip("orchestrator.store.broker")
    from obstore import exceptions

    for text in TEXTS:
        for kind in (OSError, ValueError, exceptions.PermissionDeniedError, exceptions.GenericError):
            yield f"{kind.__name__} {text[:40]!r}", broker.explained(kind(text))
    yield "full", broker.explained(OSError(errno.ENOSPC, "No space left on device"))
    yield "late", broker.explained(TimeoutError())
    for error in (
        FileNotFoundError("x"),
        FileNotFoundError("NoSuchBucket"),
        exceptions.NotFoundError("x"),
        OSError("x"),
    ):
        yield f"absent {type(error).__name__} {error}", broker._is_absent(error)
    for url in ("s3://bucket/a/b", "gs://bucket", "ftp://x"):
        try:
            found = broker.open_store(url, stall_s=1.0, request_s=2.0, retries=0)
            yield f"open {url}", (type(found).__name__, found.prefix)
        except (KeyError, ValueError, OSError) as error:
            yield f"open {url}", type(error).__name__
        except Exception as error:
            yield f"open {url}", type(error).__name__

    async def each(works: list[object]) -> str:
        async def work(what: object) -> None:
            if isinstance(what, Exception):
                raise what

        try:
            await broker._all(work(what) for what in works)
        except ValueError as error:
            return str(error)
        return "all well"

    yield (
        "together",
        [
            asyncio.run(each(list(works)))
            for works in ((), (1, 2), (1, ValueError("first"), ValueError("second")))
        ],
    )
    request = WireRequest(7, "get", ("a", "b"), b"data", 3, (Move("k", "/p", 9, "d"),), 5)
    yield "frame", frame(request)
    yield "reply", frame(WireReply(7, None, "words", 5))
    lost = BrokerLost()
    yield "lost", (lost.errno, str(lost))
    connection = Connection("s3://bucket")
    for name, act in {
        "taken": lambda: connection.taken(1),
        "read": lambda: connection._read(0.0),
        "closed": connection.close,
    }.items():
        try:
            yield name, act()  # type: ignore[func-returns-value]
        except OSError as error:
            yield name, f"{type(error).__name__}: {error}"


def archives() -> Answers:
    """Archives of code, and listings."""
    files = [
        PlannedFile(CodeFile(path="p/a.py", kind="file", size=2, sha256="1"), b"ab", 0o644),
        PlannedFile(CodeFile(path="p/run.sh", kind="exec", size=1, sha256="2"), b"c", 0o100755),
        PlannedFile(CodeFile(path="p/link", kind="link", size=4, sha256="3"), b"a.py", 0o400),
        PlannedFile(CodeFile(path="p/empty", kind="folder", size=0, sha256=""), b"", 0),
    ]
    data = _packed(files)
    yield "packed", (len(data), data == _packed(files), data != _packed(files[::-1]))
    for item in _unpacked(data, [each.file for each in files[:3]]):
        yield "unpacked", (item.file.path, item.data, oct(item.mode))
    for name, content in {"cut": data[:600], "whole": data}.items():
        try:
            found = _unpacked(content, [CodeFile(path="p/other", kind="file", size=1, sha256="")])
            yield name, found
        except ValueError as error:
            yield name, str(error)
    yield "listing", _listing([["a", ".hidden", "b"], ["c", ".d"]])._asdict()


def caches() -> Answers:
    """Caches of stores, by the environment."""
    before = dict(os.environ)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        try:
            for text in ("", "0.5", "x", "-1", "nan"):
                os.environ["SWEEP_CACHE_GIB"] = text
                yield f"limit {text}", answer(lambda: Cache("s3://bucket/runs", home).limit_bytes)
            os.environ.pop("SWEEP_CACHE_GIB")
            os.environ.pop("AWS_ENDPOINT_URL_S3", None)
            os.environ.pop("AWS_ENDPOINT_URL", None)
            mine, same = Cache("s3://bucket/runs", home), Cache("s3://bucket/runs", home)
            os.environ["AWS_ENDPOINT_URL"] = "http://elsewhere"
            other = Cache("s3://bucket/runs", home)
            os.environ["SWEEP_CACHE"] = f"{name}/named"
            yield (
                "roots",
                (
                    mine.root.name,
                    mine.root == same.root,
                    mine.root != other.root,
                    str(Cache("gs://b").home).replace(name, "HOME"),
                ),
            )
        finally:
            os.environ.clear()
            os.environ.update(before)


def evictions() -> Answers:
    """What the cache holds, and what it evicts."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        mine = Cache("s3://bucket/runs", home)
        for prefix in (
            "payload/fit/d/1/output",
            "payload/fit/d",
            "code/d/x",
            "records/fit",
            "payload/fit/d/2",
        ):
            yield f"unit {prefix}", (cache._unit(prefix), str(mine.folder(prefix).relative_to(mine.root)))
        for number in (1, 2, 3):
            folder = mine.hold(f"payload/fit/d/{number}/output")
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(b"x" * 100)
        mine.hold("records/fit")
        yield "held", [each for each in listed(mine.root) if "." in each]
        for number in (1, 2):
            mine.release(f"payload/fit/d/{number}")
            os.utime(cache._lock_of(mine.root, f"payload/fit/d/{number}"), (number, number))
        mine.release("payload/none/d/9")
        for limit in (300, 250, 0):
            mine.limit_bytes, mine._shrunk_s = limit, -1e9
            mine.shrink()
            yield f"shrunk to {limit}", [each for each in listed(mine.root) if each.endswith("file")]
        mine.release("payload/fit/d/3")
        mine.shrink()
        yield "a moment later", [each for each in listed(mine.root) if each.endswith("file")]
        calls: list[str] = []
        with mine.filling("payload/fit/d/3", lambda: calls.append("alive")):
            yield "filling", [each for each in listed(mine.root) if "filling" in each]
        yield "not waited", calls
        (mine.root / "link").symlink_to(home)
        for prefix in ("payload/fit/d/3", "link", "nothing"):
            mine.clear(prefix)
            yield f"cleared {prefix}", (mine.folder(prefix).exists(), home.exists())
        yield "trash", listed(home / ".trash") if (home / ".trash").exists() else []


ASKED: dict[str, Callable[[], Answers]] = {
    "errors_of_buckets": errors_of_buckets,
    "archives": archives,
    "caches": caches,
    "evictions": evictions,
}
