"""The process that talks to a bucket for another process: ``python -P -m orchestrator.store.broker URL``.

The object-store library runs threads that do not survive a fork. Workers and fork servers therefore never
import it; only the broker does. A broker serves one process (`orchestrator.store.client`), handles many calls
concurrently, and ends when that process closes the pipe.

A create is never retried here. A retry could find the object that the first try wrote, and report a conflict
with itself; the ledger decides by reading the record back (rule 1). All other calls are idempotent and are
retried for a few seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import obstore
from obstore import exceptions
from obstore.store import GCSStore, S3Store

from orchestrator.store.client import (
    CONNECT_S,
    LENGTH_BYTES,
    LIMIT_S,
    SLOW_BYTES_S,
    STALL_S,
    Move,
    WireReply,
    WireRequest,
    frame,
)
from orchestrator.store.objects import TEMPORARY

AT_ONCE, FILES_AT_ONCE = 64, 4
CHUNK, MAX_PARTS = 8 * 2**20, 9_000
"""Size of one part of a large file in bytes, and the maximum number of parts. S3 accepts 10,000; a larger
file gets larger parts.
"""

TRIES, PART_S, MAX_S = 3, 120.0, 4 * 3600.0
_CREDENTIALS = r"credential|/latest/(api/token|meta-data)|computeMetadata|169\.254\.169|JWT|OAuth"
"""Error texts that mean missing credentials. Without an account in the environment, the library queries the
machine's metadata server, and the error names that server instead of the cause.
"""


Store = S3Store | GCSStore
T = TypeVar("T")


def open_store(url: str, *, stall_s: float, request_s: float, retries: int) -> Store:
    """Open a bucket with endpoint, region and credentials from the environment. No request is sent yet.

    Args:
        url: ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        stall_s: Longest pause within one response, in seconds.
        request_s: Time limit for one request and its response, in seconds. A stall while sending is noticed
            only by this limit.
        retries: Retries of a failed request, within a total time limit.

    Raises:
        ValueError: The address names no bucket.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, prefix = rest.partition("/")
    client: Any = {
        "timeout": timedelta(seconds=request_s),
        "connect_timeout": timedelta(seconds=CONNECT_S),
        "read_timeout": timedelta(seconds=stall_s),
        # The library reads this variable only when no client options are passed.
        "allow_http": os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes"),
    }
    retry: Any = {
        "max_retries": retries,
        "retry_timeout": timedelta(seconds=min(request_s * 2, max(LIMIT_S, stall_s * 2))),
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    }
    kind: Any = {"s3": S3Store, "gs": GCSStore}[scheme]
    opened: Store = kind(bucket, prefix=prefix or None, client_options=client, retry_config=retry)
    return opened


class Broker:
    """Handler of calls about one bucket.

    Each ``do_<verb>`` method handles the verb of that name. Four connections differ in time limits and
    retries: one for creates (no retries), one for all other records, one for uploads in parts, one for whole
    downloads.

    Args:
        url: Address of the store.
    """

    def __init__(self, url: str) -> None:
        self._once = open_store(url, stall_s=LIMIT_S, request_s=MAX_S, retries=0)
        # A read that stalls fails early enough to be retried within the limit for a record.
        self._store = open_store(url, stall_s=LIMIT_S * 0.4, request_s=MAX_S, retries=2)
        self._parts = open_store(url, stall_s=STALL_S, request_s=PART_S, retries=2)
        self._whole = open_store(url, stall_s=STALL_S, request_s=MAX_S, retries=2)
        self._few, self._files = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(FILES_AT_ONCE)

    async def answer(self, call: WireRequest) -> WireReply:
        """Handle one call and return its reply. Errors are returned in the reply, never raised."""
        try:
            # The verbs come from our own client, so a method is looked up by name.
            value = await getattr(self, f"do_{call.verb}")(call)
        except Exception as error:  # noqa: BLE001 - every error is sent back to the client
            return WireReply(call.number, None, *explained(error))
        return WireReply(call.number, value)

    # Records

    async def do_create(self, call: WireRequest) -> bool:
        """Write an object only if it is absent; return False when it exists."""
        try:
            # Multipart uploads do not support the condition "only if absent".
            put = obstore.put_async(self._once, call.keys[0], call.data, mode="create", use_multipart=False)
            await _limited(put, len(call.data))
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            return False
        return True

    async def do_put(self, call: WireRequest) -> None:
        """Write or replace an object."""
        put = obstore.put_async(self._store, call.keys[0], call.data, use_multipart=False)
        await _limited(put, len(call.data))

    async def do_get(self, call: WireRequest) -> bytes | None:
        """Read one object; return None when it is absent."""
        return await self._get(call.keys[0])

    async def do_get_many(self, call: WireRequest) -> list[bytes | None]:
        """Read many objects; None stands for one that is absent."""
        return await asyncio.gather(*(self._one_of_many(self._get(key)) for key in call.keys))

    async def do_read_from(self, call: WireRequest) -> bytes:
        """Read an object from a byte offset; return nothing when it has no more bytes."""
        try:
            some: Any = (
                {"offset": call.start} if call.limit is None else (call.start, call.start + call.limit)
            )
            asked = obstore.get_async(self._store, call.keys[0], options={"range": some})
            return await _body(await _limited(asked))
        except Exception as error:
            # Status 416: the offset is at or beyond the end. A log that has not grown gives this.
            if " 416 " in str(error) or _is_absent(error):
                return b""
            raise

    async def do_age(self, call: WireRequest) -> float:
        """Return for how many seconds an object has existed, by the bucket's clock. This writes a probe."""
        probe = f"probe-{uuid.uuid4().hex}"
        await _limited(obstore.put_async(self._store, probe, b"age", use_multipart=False))
        try:
            new, old = [
                (await _limited(obstore.head_async(self._store, key)))["last_modified"]
                for key in (probe, call.keys[0])
            ]
        finally:
            await _limited(obstore.delete_async(self._store, [probe]))
        return float((new - old).total_seconds())

    async def do_list(self, call: WireRequest) -> tuple[list[str], list[str]]:
        """Return the names directly under a prefix: files, and folders."""
        return await _limited(self._list(call.keys[0]))

    async def do_list_many(self, call: WireRequest) -> list[tuple[list[str], list[str]]]:
        """Return the names directly under each of many prefixes."""
        return await asyncio.gather(*(self._one_of_many(self._list(prefix)) for prefix in call.keys))

    async def do_trees(self, call: WireRequest) -> list[dict[str, int]]:
        """Return the path and size of each object under each of many prefixes."""
        return await asyncio.gather(*(self._one_of_many(self._tree(prefix)) for prefix in call.keys))

    async def do_span(self, call: WireRequest) -> list[str]:
        """Return the paths under a prefix from one folder to another, both included, in a bucket's order."""
        prefix, first, last = call.keys
        found: list[str] = []
        async for batch in obstore.list(self._store, prefix, offset=f"{prefix}/{first}", chunk_size=1000):
            found += [meta["path"][len(prefix) + 1 :] for meta in batch]
            if found and found[-1] > f"{last}0":  # the character after the slash
                break
        return [path for path in found if path < f"{last}0"]

    async def do_delete(self, call: WireRequest) -> None:
        """Delete all objects under a prefix; when there are none, the object of that name."""
        (prefix,) = call.keys
        # A bucket has no folders: a prefix is deleted by deleting each object under it.
        paths = [f"{prefix}/{path}" for path in await self._tree(prefix)] or [prefix]
        with contextlib.suppress(FileNotFoundError):  # GCS reports an absent object, S3 does not
            await _limited(obstore.delete_async(self._store, paths), len(paths) * SLOW_BYTES_S // 20)

    async def _one_of_many(self, work: Coroutine[Any, Any, T]) -> T:
        async with self._few:
            return await work

    async def _get(self, key: str) -> bytes | None:
        try:
            return await _body(await _limited(obstore.get_async(self._store, key)))
        except Exception as error:
            if _is_absent(error):
                return None
            raise

    async def _list(self, prefix: str) -> tuple[list[str], list[str]]:
        found = await obstore.list_with_delimiter_async(self._store, prefix or None)
        files = sorted(meta["path"].rpartition("/")[2] for meta in found["objects"])
        return files, sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    async def _tree(self, prefix: str) -> dict[str, int]:
        # Listings return whole keys; callers expect paths below the prefix.
        skip = len(prefix) + 1 if prefix else 0
        sizes: dict[str, int] = {}
        async for batch in obstore.list(self._store, prefix or None, chunk_size=1000):
            sizes.update({meta["path"][skip:]: meta["size"] for meta in batch})
        return sizes

    # Files

    async def do_upload(self, call: WireRequest) -> None:
        """Upload files, in no particular order."""
        await _all(self._upload(move) for move in call.moves)

    async def do_download(self, call: WireRequest) -> None:
        """Download files. A file that is absent in the store is skipped.

        Content that differs from the expected digest is kept after the last try; the caller checks the files.
        """
        await _all(self._download(move) for move in call.moves)

    async def _upload(self, move: Move) -> None:
        chunk = max(CHUNK, move.size // MAX_PARTS)
        async with self._files:
            await obstore.put_async(
                self._parts, move.key, Path(move.path), chunk_size=chunk, max_concurrency=FILES_AT_ONCE
            )

    async def _download(self, move: Move) -> None:
        async with self._files:
            for number in range(TRIES):
                try:
                    # A wrong digest may come from a damaged transfer, so the download is repeated.
                    if await self._receive(move) or number == TRIES - 1:
                        return
                except Exception as error:
                    if _is_absent(error):
                        return
                    if number == TRIES - 1:
                        raise

    async def _receive(self, move: Move) -> bool:
        """Download one file under a temporary name, then rename it.

        Returns:
            Whether the content has the expected digest; True when none is given.
        """
        final = Path(move.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        # The name holds the process and the key, so that concurrent downloads never share a file.
        temporary = final.with_name(
            f"{TEMPORARY}{os.getpid()}-{hashlib.sha256(move.key.encode()).hexdigest()}"
        )
        digest = hashlib.sha256()
        try:
            with temporary.open("wb") as stream:

                def take(piece: bytes) -> None:
                    digest.update(piece)
                    stream.write(piece)

                async for piece in _pieces(self._whole, move.key):
                    # Hashing and writing 8 MiB would block the event loop, and with it every other call.
                    await asyncio.to_thread(take, piece)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
        return not move.sha256 or digest.hexdigest() == move.sha256


async def _pieces(store: Store, key: str) -> AsyncIterator[bytes]:
    async for piece in (await obstore.get_async(store, key)).stream(min_chunk_size=CHUNK):
        yield bytes(piece)


async def _body(found: Any) -> bytes:
    first, last = found.range
    return bytes(await _limited(found.bytes_async(), last - first))


async def _limited(work: Coroutine[Any, Any, T], num_bytes: int = 0) -> T:
    """Await a coroutine with the time limit of one record, extended for the bytes it transfers."""
    return await asyncio.wait_for(work, LIMIT_S + num_bytes / SLOW_BYTES_S)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Await all coroutines, so that every possible transfer happens, then raise the first error."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


def _is_absent(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError | exceptions.NotFoundError) and not _is_bucket(str(error))


def _is_bucket(text: str) -> bool:
    return "NoSuchBucket" in text or "bucket does not exist" in text


def explained(error: Exception) -> tuple[str, int]:
    """Return a short description of an error, and its errno; see `WireReply.errno`.

    The library reports most failures as long texts without a type of their own. The status code, S3's error
    code and the cause are therefore extracted by pattern.
    """
    text = str(error)
    # A plain OSError, such as a full disk, keeps its errno. Others become EIO unless they match below.
    kind = (error.errno if type(error) is OSError else None) or errno.EIO
    if _is_bucket(text):
        return "there is no such bucket", errno.ENXIO
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        kind = errno.EACCES
    elif re.search(_CREDENTIALS, text, re.IGNORECASE):
        kind = errno.EACCES
        text = "no credentials in the environment"
    elif isinstance(error, ValueError):
        kind = errno.EINVAL
    if isinstance(error, TimeoutError):
        return f"the store did not answer in {LIMIT_S:.0f} s", kind
    if status := re.search(r"status code: (\d+[^:\n]*)", text):
        code = re.search("<Code>(.*?)</Code>", text)
        return f"the store answered {status[1].strip()}{f' ({code[1]})' if code else ''}", kind
    line = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if failed := re.search(r"HTTP error: (.*)", line):
        return f"the store cannot be reached ({failed[1]})", kind
    return line if len(line) <= 240 else line[:237] + "...", kind


async def serve(url: str) -> None:
    """Handle the calls that arrive on standard input, and exit when it closes."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout.buffer)
    writer = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        broker = Broker(url)
    except Exception as error:  # noqa: BLE001 - reported to the client below
        # Number 0 belongs to no call: the client reads it as "this broker cannot serve the address".
        writer.write(frame(WireReply(0, None, *explained(error))))
        await writer.drain()
        return
    running: set[asyncio.Task[None]] = set()

    async def reply(call: WireRequest) -> None:
        writer.write(frame(await broker.answer(call)))
        await writer.drain()

    while True:
        try:
            length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
            call = msgspec.msgpack.decode(await reader.readexactly(length), type=WireRequest)
        except (asyncio.IncompleteReadError, OSError):
            os._exit(0)  # the client is gone, so pending calls have no receiver
        # The event loop keeps only weak references to tasks; `running` keeps them alive.
        task = asyncio.create_task(reply(call))
        running.add(task)
        task.add_done_callback(running.discard)


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        asyncio.run(serve(sys.argv[1]))
