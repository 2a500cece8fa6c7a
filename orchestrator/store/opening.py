"""Checks that a place can be a store: it answers, accepts writes, and lets only one writer create a key.

This module also defines the permissions of what the project creates in a store.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from orchestrator import formats
from orchestrator.core.records import StoreMark
from orchestrator.core.secrets import redacted
from orchestrator.errors import InfrastructureError, SweepError, UserError, is_out_of_space, is_utf8, one_line
from orchestrator.registry import BUCKETS, load
from orchestrator.store.objects import ObjectStore, PosixStore

PRIVATE, SHARED = 0o700, 0o2770
FIX = "whoever owns it: chmod -R g+rwX {0}; find {0} -type d -exec chmod g+s {{}} +  (and a umask of 002)"
_SAMPLED = 200

DEFAULT_STORE = "runs"
"""Folder of the store in the working folder, if no other is named."""


def space_of(objects: ObjectStore) -> tuple[int, int] | None:
    """Return the bytes that are free in a folder for this user, and those of its disk; None in a bucket."""
    if (folder := objects.shared_folder("")) is None:
        return None
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize


def store_url(url: str | None) -> str:
    """Return where the store is: `url` if given, else SWEEP_STORE, else ``runs`` in the working folder."""
    url = url or os.environ.get("SWEEP_STORE") or DEFAULT_STORE
    return url if "://" in url else str(_folder(url))


def make_root(root: Path, *, shared: bool) -> None:
    """Create a store's folder, whose mode its files will follow. An existing folder keeps its mode.

    Args:
        root: The folder.
        shared: Whether its group may write.

    Raises:
        OSError: The folder cannot be created.
    """
    if root.is_dir():
        return
    # Of launches that start at once, one makes the folder. It appears with its mode, so that no file of
    # another one gets the mode of a moment before.
    root.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    made.chmod(SHARED if shared else PRIVATE)
    try:
        made.rename(root)
    except OSError:
        made.rmdir()
        if not root.is_dir():
            raise


def follow_root(root: Path) -> None:
    """Set the umask so that new files get the group and other permissions of the store's folder.

    Otherwise the umask of whoever writes would decide, and could lock colleagues out or let everyone in.
    Child processes inherit the umask. Nothing changes while the folder does not exist.
    """
    global _usual
    try:
        mode = root.stat().st_mode
    except OSError:
        return  # the folder does not exist yet
    before = os.umask(~mode & 0o077)
    # A later call finds the umask of an earlier one, not the user's.
    _usual = before if _usual is None else _usual


_usual: int | None = None
"""The user's own umask, while that of a store is set."""

_FOLLOWING = threading.RLock()


@contextlib.contextmanager
def as_usual() -> Iterator[None]:
    """Create files inside the block with the user's own umask; meant for files outside the store."""
    followed = None if _usual is None else os.umask(_usual)
    try:
        yield
    finally:
        if followed is not None:
            os.umask(followed)


@contextlib.contextmanager
def following(url: str) -> Iterator[None]:
    """Create files inside the block with the modes of the store at `url`, and restore the umask after it.

    A command sets the umask once, for itself and its children. A program that uses the API has files of its
    own, so its umask must not change between two calls. One thread at a time follows a store, because the
    umask is that of the whole process: two could restore each other's.
    """
    global _usual
    with _FOLLOWING:
        before, usual = os.umask(0o077), _usual
        os.umask(before)
        _usual = None  # inside the block the program's own umask is that of now
        try:
            if "://" not in url:
                follow_root(Path(url))
            yield
        finally:
            os.umask(before)
            _usual = usual


def refused(root: Path, error: OSError) -> SweepError | None:
    """Return the error to show when a folder denies access, None for any other error."""
    if error.errno not in (errno.EACCES, errno.EPERM):
        return None
    return UserError(
        f"the store {root} does not let us in: {error.strerror}",
        where=f"{error.filename or root}; {_who(root)}",
        allowed="a store for colleagues is made with store.shared=true, in a folder of their common group",
        fix=FIX.format(root),
    )


def problems(root: Path) -> Iterator[str]:
    """Yield what locks this user out, or would lock out colleagues in a store that its group may write.

    At least the first `_SAMPLED` folders are examined, which is enough to see a wrong umask.
    """
    mode = root.stat().st_mode
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        yield f"{root} does not let us in: {_who(root)}; {FIX.format(root)}"
        return
    # A private store has no colleagues to lock out.
    if not mode & stat.S_IWGRP:
        return
    # With the set-group-id bit, new files belong to the folder's group, so that colleagues can use them.
    if not mode & stat.S_ISGID:
        yield f"its group may write, but files in it get their writer's own group: chmod g+s {root}"
    closed, seen = 0, 0
    for place, folders, _ in os.walk(root):
        for path in (Path(place, name) for name in folders):
            seen += 1
            closed += path.lstat().st_mode & 0o070 != 0o070
        if seen >= _SAMPLED:
            break
    if closed:
        yield f"{closed} of {seen} folders are closed to its group, as by a umask of 022: {FIX.format(root)}"


def _who(root: Path) -> str:
    """Return owner, group and mode of a folder, for people."""
    try:
        found = root.stat()
    except OSError:
        return "its owner is not known"
    return f"it is user {found.st_uid}'s and group {found.st_gid}'s, mode {stat.S_IMODE(found.st_mode):o}"


_TRIES, _PAUSE_S = 5, 0.2
_ENVIRONMENT = {
    "s3": "AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}


def prepare(objects: ObjectStore, key: str) -> None:
    """Check within seconds that a bucket answers. For a folder, let new files follow its modes.

    Raises:
        UserError: There is no such bucket, or the credentials are not accepted.
        InfrastructureError: The bucket does not answer.
    """
    if isinstance(objects, PosixStore):
        return follow_root(objects.root)
    try:
        # Some servers report a missing bucket like a missing key. Only a listing distinguishes the two.
        if objects.get(key) is None:
            objects.list("")
    except OSError as error:
        raise refusal(objects.url, error) from error


def prove_exclusive(objects: ObjectStore, key: str, data: bytes) -> None:
    """Prove that an existing key cannot be created again. Otherwise two workers could win one claim.

    Args:
        objects: The store.
        key: Key of an object that exists.
        data: Current content of that object. If the create succeeds by mistake, nothing is lost.

    Raises:
        InfrastructureError: The key could be created again.
        OSError: The store does not answer.
    """
    for number in range(_TRIES):
        try:
            created = objects.create(key, data)
        except OSError:
            # An unclear error proves nothing in either direction, so the create is repeated.
            if number == _TRIES - 1:
                raise
            time.sleep(_PAUSE_S * 2**number)
            continue
        if created:
            raise InfrastructureError(
                f"the store {objects.url} lets a second writer create the same key: claims would not hold",
                allowed=""
                if isinstance(objects, PosixStore)
                else "a server that honours the condition If-None-Match: *",
            )
        return


def prove_writable(objects: ObjectStore) -> None:
    """Write and delete a probe object. It has content, because a full disk still accepts empty files.

    Raises:
        UserError: The store cannot be written.
        InfrastructureError: Its disk is full, or it lets two writers create the same key.
    """
    key, data = f"probe-{uuid.uuid4().hex}", bytes(4096)
    try:
        objects.put(key, data)
        try:
            prove_exclusive(objects, key, data)
        finally:
            objects.delete(key)
    except OSError as error:
        raise not_writable(objects, error) from error


def make_store(objects: ObjectStore, key: str, at: str, *, shared: bool = False) -> None:
    """Create a store unless one exists, and prove at every launch that a second create of a key is refused.

    Without that proof, two workers could both win a claim.

    Args:
        objects: The store.
        key: Key of its mark.
        at: Time of the mark.
        shared: Whether its group may write, if a folder has to be made.
    """
    error = OSError("it does not keep what is written")
    try:
        data = objects.get(key)
        if data is None:
            if isinstance(objects, PosixStore):
                make_root(objects.root, shared=shared)
                follow_root(objects.root)
            mark = formats.encode(StoreMark(nonce=uuid.uuid4().hex, created_at=at))
            for _ in range(_TRIES):
                try:
                    objects.create(key, mark)
                except OSError as problem:  # the write may have succeeded although its reply was lost
                    error = problem
                if (data := objects.get(key)) is not None:
                    break
        if data is None:
            raise error
        prove_exclusive(objects, key, data)
    except OSError as problem:
        raise not_writable(objects, problem) from problem


def not_writable(objects: ObjectStore, error: OSError) -> SweepError:
    """Return the error to show when a store refused a write."""
    if not isinstance(objects, PosixStore):
        return refusal(objects.url, error)
    if is_out_of_space(error):
        return InfrastructureError(f"cannot write to the store: {error.strerror}", where=objects.url)
    return refused(Path(objects.url), error) or UserError(
        f"the store {objects.url} is not writable: {error.strerror or error}",
        fix="store.url=FOLDER, or set SWEEP_STORE",
    )


def refusal(url: str, error: OSError) -> SweepError:
    """Return the error to show when a bucket refused a request or did not answer."""
    scheme = url.partition("://")[0]
    message, names = error.strerror or str(error), _ENVIRONMENT.get(scheme, "")
    if error.errno == errno.ENXIO:
        return UserError(
            message, where=f"store.url={url}", fix="make the bucket first; nothing here makes or deletes one"
        )
    if error.errno == errno.EACCES:
        return UserError(
            f"the store does not let us in: {message}",
            where=f"store.url={url}",
            allowed=f"what the environment says: {names}",
            fix="set them to an account that may read, write, list and delete there",
        )
    if error.errno == errno.EINVAL:
        return UserError(message, where=f"store.url={url}", allowed=f"{scheme}://BUCKET/PREFIX")
    return InfrastructureError(
        f"the store does not answer: {message}",
        where=f"store.url={url}",
        allowed=f"what the environment says: {names}",
        fix="check them, and the network, with: sweep doctor",
    )


_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}[a-z0-9]")
"""Bucket names that S3 and GCS accept."""

_ADDRESSES = "a folder on a shared file system, file://, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX"
_NAME_BYTES, _PATH_BYTES = 255, 3500
"""Longest name of a file, and a path of a store that leaves room for those in it, up to Linux's 4,096."""


def _folder(url: str) -> Path:
    """Return the folder that a path names.

    Raises:
        UserError: It can be none.
    """
    fix = "store.url=FOLDER, or set SWEEP_STORE"
    if re.match(rf"(?i)({'|'.join(BUCKETS)}|file):", url):
        raise UserError(f"{redacted(url)!r} is no address of a store", allowed=_ADDRESSES, fix=fix)
    try:
        folder = Path(url).expanduser().absolute()
    except RuntimeError as error:
        raise UserError(f"the store {url!r} names no folder: {error}", fix=fix) from None
    longest = max((len(os.fsencode(part)) for part in folder.parts), default=0)
    if longest > _NAME_BYTES or len(os.fsencode(folder)) > _PATH_BYTES:
        raise UserError(
            f"the path of the store is too long: {str(folder)[:40]}...",
            allowed=f"names of at most {_NAME_BYTES} bytes, and {_PATH_BYTES:,} bytes in all",
            fix=fix,
        )
    if not is_utf8(str(folder)):
        raise UserError(f"the path of the store is no UTF-8 text: {one_line(str(folder))}", fix=fix)
    if problem := _no_folder(folder, is_padded=url != url.strip()):
        raise UserError(f"the store {folder} {problem}", allowed="a folder, or a path of none", fix=fix)
    return folder


def _no_folder(path: Path, *, is_padded: bool) -> str:
    """Return why a path can be no folder, "" if it is one, or one can be made there as far as is known."""
    try:
        return "" if stat.S_ISDIR(path.stat().st_mode) else "is a file"
    except FileNotFoundError:
        odd = "begins or ends with a space" if is_padded else ""
        return "is a link to nowhere" if path.is_symlink() else odd
    except OSError as error:
        return f"is no folder: {error.strerror}" if error.errno in (errno.ELOOP, errno.ENOTDIR) else ""


def open_objects(url: str) -> ObjectStore:
    """Return the store operations for a URL or path, without reading what is there.

    Raises:
        UserError: The scheme is unknown, or the address names no bucket.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return PosixStore(_folder(url))
    if scheme == "file":
        return PosixStore(Path("/" + rest.lstrip("/")))
    if scheme not in BUCKETS:
        what, fix = f"unknown store scheme {scheme!r}", "store.url=/shared/runs"
        raise UserError(what, where=f"store.url={url}", allowed=_ADDRESSES, fix=fix)
    bucket, *parts = rest.rstrip("/").split("/")
    if "@" in bucket or (":" in bucket and "@" in rest):
        raise UserError(
            f"the store's address holds a user or a password: {redacted(url)}",
            where="store.url, or SWEEP_STORE",
            allowed="it is recorded with each job; endpoint and credentials come from the environment",
            fix=f"store.url={scheme}://{rest.rpartition('@')[2]}",
        )
    if not _BUCKET.fullmatch(bucket) or not all(part.strip(".") and part.isprintable() for part in parts):
        raise UserError(
            f"{redacted(url)!r} names no place in a bucket",
            where="store.url",
            allowed=f"{scheme}://BUCKET or {scheme}://BUCKET/PREFIX; endpoint and credentials come from the "
            "environment",
            fix=f"store.url={scheme}://my-bucket/runs",
        )
    # Loaded on demand, because a store in a folder needs neither the cache nor the broker.
    made: ObjectStore = load(BUCKETS[scheme])(f"{scheme}://{'/'.join([bucket, *parts])}")
    return made
