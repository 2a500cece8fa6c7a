"""Typed records under their keys, and waiting while a store does not answer.

Records are encoded, created with a single winner, and decoded leniently. The only key that this module uses
itself is the store's mark, `store.json`. The meaning of all other records is defined in
`orchestrator.store.ledger`.

A shared folder on a network file system may not answer for a while. Only errors that pass by themselves are
waited out. A full disk, a quota, a read-only mount or a missing permission needs a person, so these errors
are raised at once. A sweep waits for space before it starts a stage, see `orchestrator.core.holding`.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import msgspec

from orchestrator import formats
from orchestrator.core.records import StoreMark
from orchestrator.errors import InfrastructureError
from orchestrator.formats import FORMAT, Stored
from orchestrator.manifest import File
from orchestrator.store import layout, opening
from orchestrator.store.objects import Keepalive, Listing, ObjectStore, PosixStore, T, idle


@dataclass
class StageIndex:
    """What the store lists about a stage: generations by digest, and the digests that have attempts."""

    done: dict[str, set[int]] = field(default_factory=dict)
    void: dict[str, set[int]] = field(default_factory=dict)
    retired: dict[str, set[int]] = field(default_factory=dict)
    attempted: frozenset[str] = frozenset()


class RecordHeader(msgspec.Struct):
    """The few fields that can be read from a record of any kind and any format.

    Attributes:
        nonce: Random value of the write that created the record.
        content: Digest of a revision's content; "" for other records.
        format: Format of the store; only in the store's mark.
    """

    nonce: str = ""
    content: str = ""
    format: int | None = None


def read_header(data: bytes) -> RecordHeader:
    """Decode the header fields of a record; all are empty when the bytes are not valid JSON."""
    try:
        return msgspec.json.decode(data, type=RecordHeader)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RecordHeader()


R = TypeVar("R", bound=Stored)
_TRIES, _PAUSE_S = 5, 0.05
_ANSWERS = frozenset({errno.EACCES, errno.EPERM})
"""Errors that are final answers: a retry would return the same."""


class Prefetched(NamedTuple):
    """Results of bulk reads of a bucket, all of about the same moment.

    Attributes:
        records: Key to bytes; None for a key that is absent.
        listings: Prefix to the names directly below it.
        sizes: Prefix to the size in bytes of each file below it, at any depth.
    """

    records: Mapping[str, bytes | None] = {}
    listings: Mapping[str, Listing] = {}
    sizes: Mapping[str, Mapping[str, int]] = {}


def new_nonce() -> str:
    """Return a random value that no other record carries."""
    return uuid.uuid4().hex


class Records:
    """Typed records on top of the operations of a store.

    Args:
        objects: Operations of the store.
        known: Results of earlier bulk reads, which are used instead of reading again.
        store_format: Format of the store; None to read it on first use.
    """

    def __init__(
        self, objects: ObjectStore, known: Prefetched | None = None, *, store_format: int | None = None
    ) -> None:
        self.objects, self._known = objects, known or Prefetched()
        self._store_format = store_format

    def knowing(self, known: Prefetched) -> Self:
        """Return a copy that answers from prefetched results, as a snapshot of one moment.

        Keys and prefixes that were not prefetched are still read from the store.
        """
        return type(self)(self.objects, known, store_format=self._store_format)

    def reading_ahead(self, read: Callable[[], Prefetched]) -> Self:
        """Return a copy that answers from bulk reads; this object itself where these save nothing."""
        found = self.objects.in_bulk(read)
        return self if found is None else self.knowing(found)

    def having_read(self, keys: Iterable[str]) -> Self:
        """Return a copy that has read these records in one bulk request, where that saves something."""
        return self.reading_ahead(lambda: Prefetched(self.objects.get_many(keys)))

    @property
    def store_format(self) -> int:
        """The format of the store; the current format when the store has no mark yet.

        Raises:
            InfrastructureError: The store did not answer, or its mark is unreadable.
        """
        if self._store_format is None:
            mark, problem = self.read(layout.STORE, StoreMark)
            if problem:
                raise InfrastructureError(
                    f"the store's mark cannot be trusted: {problem}", where=self.objects.url
                )
            self._store_format = mark.format if mark else FORMAT
        return self._store_format

    def encode(self, record: msgspec.Struct) -> bytes:
        """Return the bytes of a record in the format of this store.

        Raises:
            UserError: The store has an earlier format, which cannot hold one of the record's settings.
        """
        return formats.encode(record, store_format=self.store_format)

    def refuse_unheld(self, *asked: msgspec.Struct) -> None:
        """Refuse settings that this store's format cannot hold, before anything is recorded.

        Raises:
            UserError: One of the values has such a setting.
        """
        for each in asked:
            formats.refuse_unheld(each, store_format=self.store_format, store=self.objects.url)

    def create(self, key: str, record: msgspec.Struct, nonce: str) -> bool:
        """Create a record; return True when the record that now exists is ours.

        A create can report the wrong outcome: the reply may be lost, or a retry inside the store may find the
        object that the first try has just written. The outcome is therefore decided by reading the record
        back (rule 1)::

            reply            record read back     result
            created          not read             True
            exists, error    has our nonce        True: our write succeeded and only the reply was wrong
            exists, error    has another nonce    False: another writer won
            exists, error    absent, no reply     try again

        Raises:
            InfrastructureError: Several tries gave no clear outcome.
        """
        data, error = self.encode(record), OSError("the store answers one thing and then another")
        for number in range(_TRIES):
            try:
                if self.objects.create(key, data):
                    return True
            except OSError as problem:
                error = problem
            try:
                # A refusal may come from a retry that found our own record, so the record decides.
                found = self.objects.get(key)
            except OSError as problem:
                error, found = problem, None
            if found is not None:
                # Only the nonce is compared, because the rest of a later format may not be decodable.
                return read_header(found).nonce == nonce
            time.sleep(_PAUSE_S * 2**number)
        raise InfrastructureError(f"cannot write {key}: {error}", where=self.objects.url) from error

    def read(self, key: str, kind: type[R], **identity: object) -> tuple[R | None, str]:
        """Read a record.

        Args:
            key: Key of the record.
            kind: Expected type.
            identity: Field values that the key implies. A record with other values does not belong under this
                key and counts as unreadable.

        Returns:
            (record, ""), or (None, "") when it is absent, or (None, problem) when it is unreadable.

        Raises:
            InfrastructureError: The store did not answer. This never counts as "absent".
        """
        error = OSError()
        for number in range(_TRIES):
            try:
                data = self._known.records[key] if key in self._known.records else self.objects.get(key)
            except OSError as problem:
                error = problem
                # Waiting does not grant a permission, so the error is reported at once.
                if problem.errno in _ANSWERS:
                    break
                time.sleep(_PAUSE_S * 2**number)
                continue
            if data is None:
                return None, ""
            try:
                record = formats.decode(data, kind)
                for name, value in identity.items():
                    # A record that was copied or restored under another key must not count there.
                    if (found := getattr(record, name)) != value:
                        return None, f"{key} is unreadable (it is of {name} {found!r})"
                return record, ""
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                return None, f"{key} is unreadable ({problem})"
        raise InfrastructureError(f"cannot read {key}: {error}", where=self.objects.url) from error

    def prove_writable(self) -> None:
        """Prove that the store accepts writes and lets only one writer create a key."""
        opening.prove_writable(self.objects)

    def listing(self, prefix: str) -> Listing:
        """Return the names directly under a prefix."""
        # An empty listing is a result too, hence the comparison with None.
        known = self._known.listings.get(prefix)
        return self.objects.list(prefix) if known is None else known

    def sizes(self, prefix: str, files: Sequence[File]) -> Mapping[str, int]:
        """Return the sizes in bytes of those of these files that exist, by path below the prefix."""
        known = self._known.sizes.get(prefix)
        return self.objects.sizes(prefix, files) if known is None else known


_TRANSIENT = (
    "EIO ESTALE ENOTCONN ETIMEDOUT EAGAIN EBUSY EREMOTEIO ENOLINK ECONNREFUSED ECONNRESET ECONNABORTED "
    "EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH ENETRESET ESHUTDOWN"
)
TRANSIENT = frozenset(getattr(errno, name) for name in _TRANSIENT.split())
"""Errors of a server, a connection or a mount that may recover without help."""

AGAIN_S, POLL_S, SAY_S = 0.1, 0.5, 2.0
"""Pause before the second try, poll interval during an outage, and the time after which an outage is
reported; in seconds.
"""


class Outage(NamedTuple):
    """Settings for waiting out an outage.

    Attributes:
        limit_s: Time after which the error is raised, in seconds.
        notify: Receives one line when an outage begins and one when it ends.
        stop_asked: Returns the reason to stop waiting, "" to go on.
    """

    limit_s: float
    notify: Callable[[str], None]
    stop_asked: Callable[[], str] = lambda: ""


def is_transient(error: BaseException) -> bool:
    """Return whether an error, or the one that caused it, may pass by itself."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in TRANSIENT


def error_line(error: BaseException) -> str:
    """Return an error of the store as one line for people."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.strerror:
        where = f": {cause.filename}" if cause.filename else ""
        return f"{cause.strerror}{where}"
    return " ".join(str(error).split())


def wait_out(act: Callable[[], T], answers: Callable[[], object], outage: Outage) -> T:
    """Run an operation; while the whole store does not answer, wait and try again.

    An error of a single folder, while the rest of the store answers, is retried only once. The caller can
    then go on with other stages instead of waiting for one.

    Args:
        act: The operation.
        answers: Probe that raises when the store as a whole does not answer.
        outage: Limit, messages and stop condition.

    Raises:
        OSError: The error is not transient, concerns one folder only, or lasted longer than the limit.
        InfrastructureError: The same, as raised by an operation that retries itself.
    """
    start_s, is_reported, again = time.monotonic(), False, False
    while True:
        try:
            result = act()
        except (OSError, InfrastructureError) as error:
            waited_s = time.monotonic() - start_s
            if not is_transient(error) or outage.stop_asked() or waited_s > outage.limit_s:
                raise
            if _fails(answers):
                again = False
                # Short hiccups are common on network file systems, and are not reported.
                if not is_reported and waited_s >= SAY_S:
                    up_to = f"waiting for up to {outage.limit_s:.0f} s"
                    outage.notify(f"the store does not answer ({error_line(error)}): {up_to}")
                    is_reported = True
            # The store answers, so the error belongs to one folder. Two in a row are final.
            elif again:
                raise
            else:
                again = True
            time.sleep(AGAIN_S if waited_s < SAY_S else POLL_S)
            continue
        if is_reported:
            outage.notify(f"the store answers again after {time.monotonic() - start_s:.0f} s")
        return result


def _fails(answers: Callable[[], object]) -> bool:
    try:
        answers()
    except (OSError, InfrastructureError):
        return True
    return False


class PatientStore(PosixStore):
    """A folder whose outages are waited out, for processes that would lose work by exiting.

    Args:
        root: The folder.
        outage: Limit, messages and stop condition.
    """

    def __init__(self, root: Path, outage: Outage) -> None:
        super().__init__(root)
        self._outage, self._gave_up = outage, False

    def _patiently(self, act: Callable[[], T]) -> T:
        # After one full wait, fail at once until the store answers again. Otherwise each further operation of
        # a worker that is shutting down would wait for the whole limit.
        if self._gave_up:
            result = act()
            self._gave_up = False
            return result
        start_s = time.monotonic()
        try:
            return wait_out(act, self._look, self._outage)
        except (OSError, InfrastructureError):
            # An error that was raised early, by a stop or as permanent, does not count as giving up.
            self._gave_up = time.monotonic() - start_s > self._outage.limit_s
            raise

    def _look(self) -> None:
        # The mark always exists, so an error here is one of the whole store.
        self.path(layout.STORE).open("rb").close()

    def create(self, key: str, data: bytes) -> bool:
        """Create as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).create(key, data))

    def put(self, key: str, data: bytes) -> None:
        """Write as in a folder, waiting out outages."""
        self._patiently(lambda: super(PatientStore, self).put(key, data))

    def get(self, key: str) -> bytes | None:
        """Read as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).get(key))

    def read_from(self, key: str, start: int, limit: int | None = None) -> bytes:
        """Read as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).read_from(key, start, limit))

    def list(self, prefix: str) -> Listing:
        """List as in a folder, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).list(prefix))

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        """Walk as in a folder, waiting out outages."""
        # An iterator would be empty at the second try.
        wanted = [*prefixes]
        return self._patiently(lambda: super(PatientStore, self).trees(wanted))

    def workspace(self, prefix: str) -> Path:
        """Create the folder as in a folder store, waiting out outages."""
        return self._patiently(lambda: super(PatientStore, self).workspace(prefix))

    def upload(self, prefix: str, *, keepalive: Keepalive = idle) -> None:
        """Sync as in a folder, waiting out outages."""
        self._patiently(lambda: super(PatientStore, self).upload(prefix, keepalive=keepalive))
