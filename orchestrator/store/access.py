"""Records by their keys: encoded for the store's format, created so that one writer wins, read leniently.

It knows no key but that of the store's mark; what the records mean is `orchestrator.store.ledger`'s.
"""

from __future__ import annotations

import errno
import time
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self, TypeVar

import msgspec

from orchestrator import formats
from orchestrator.core.records import Record, StoreMark
from orchestrator.errors import InfrastructureError
from orchestrator.formats import FORMAT
from orchestrator.store import layout, opening
from orchestrator.store.objects import Listing, ObjectStore


class RecordHeader(msgspec.Struct):
    """Fields that some records have.

    Attributes:
        nonce: of the write that made it.
        content: digest of a revision's content.
        format: of the store.
    """

    nonce: str = ""
    content: str = ""
    format: int | None = None


def read_header(data: bytes) -> RecordHeader:
    """Reads them from a record's bytes."""
    try:
        return msgspec.json.decode(data, type=RecordHeader)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return RecordHeader()


R = TypeVar("R", bound=Record)
_TRIES, _PAUSE_S = 5, 0.05
_ANSWERS = frozenset({errno.EACCES, errno.EPERM})
"""Errors that no second try changes."""


class Prefetched(NamedTuple):
    """What was read of a bucket at once: records, listings of one level, and sizes below prefixes."""

    records: Mapping[str, bytes | None] = {}
    listings: Mapping[str, Listing] = {}
    sizes: Mapping[str, Mapping[str, int]] = {}


def new_nonce() -> str:
    """Returns a value that no other record carries."""
    return uuid.uuid4().hex


class Records:
    """Typed records over the operations of a store.

    Args:
        objects: the operations of the place.
        known: what was read of it already.
        store_format: of the store; None to read it when first needed.
    """

    def __init__(
        self, objects: ObjectStore, known: Prefetched | None = None, *, store_format: int | None = None
    ) -> None:
        self.objects, self._known = objects, known or Prefetched()
        self._store_format = store_format

    def knowing(self, known: Prefetched) -> Self:
        """Returns the same that takes these answers for the store's, for a view of one moment."""
        return type(self)(self.objects, known, store_format=self._store_format)

    def having_read(self, keys: Iterable[str]) -> Self:
        """Returns one that read some records all at once; itself where a round trip costs nothing."""
        return self if self.objects.in_place else self.knowing(Prefetched(self.objects.get_many(keys)))

    @property
    def store_format(self) -> int:
        """The format of the store, which is that of a new one where there is no mark yet.

        Raises:
            InfrastructureError: the store did not answer.
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
        """Return a record as this store holds it.

        Raises:
            UserError: it is of an earlier format that cannot hold a setting.
        """
        return formats.encode(record, store_format=self.store_format)

    def refuse_unheld(self, *asked: msgspec.Struct) -> None:
        """Refuse settings that a store of this format cannot hold, before anything is recorded.

        Raises:
            UserError: there is such a setting.
        """
        for each in asked:
            formats.refuse_unheld(each, store_format=self.store_format, store=self.objects.url)

    def create(self, key: str, record: msgspec.Struct, nonce: str) -> bool:
        """Creates a record; True when it is ours that stands (rule 1: *create* can lie).

        A lost reply or a retry inside the store can make a create that worked look refused, so on a refusal
        or an unclear error the record is read back: our nonce means won, another's lost, absent try again.

        Raises:
            InfrastructureError: the store did not answer clearly in several tries.
        """
        data, error = self.encode(record), OSError("the store answers one thing and then another")
        for number in range(_TRIES):
            try:
                if self.objects.create(key, data):
                    return True
            except OSError as problem:
                error = problem
            try:
                found = self.objects.get(key)
            except OSError as problem:
                error, found = problem, None
            if found is not None:
                return read_header(found).nonce == nonce
            time.sleep(_PAUSE_S * 2**number)
        raise InfrastructureError(f"cannot write {key}: {error}", where=self.objects.url) from error

    def read(self, key: str, kind: type[R], **identity: object) -> tuple[R | None, str]:
        """Reads a record: (record, ""), (None, "") when absent, or (None, problem) when unreadable.

        Args:
            key: where it lies.
            kind: what it should be.
            identity: values of its fields that the key names already; another record is none of this key's.

        Raises:
            InfrastructureError: the store did not answer; that is not "absent".
        """
        error = OSError()
        for number in range(_TRIES):
            try:
                data = self._known.records[key] if key in self._known.records else self.objects.get(key)
            except OSError as problem:
                error = problem
                if problem.errno in _ANSWERS:
                    break
                time.sleep(_PAUSE_S * 2**number)
                continue
            if data is None:
                return None, ""
            try:
                record = formats.decode(data, kind)
                for name, value in identity.items():
                    if (found := getattr(record, name)) != value:
                        return None, f"{key} is unreadable (it is of {name} {found!r})"
                return record, ""
            except (msgspec.DecodeError, UnicodeDecodeError) as problem:
                return None, f"{key} is unreadable ({problem})"
        raise InfrastructureError(f"cannot read {key}: {error}", where=self.objects.url) from error

    def prove_writable(self) -> None:
        """Proves that the store can be written, and that one writer wins; see `opening.prove_writable`."""
        opening.prove_writable(self.objects)

    def listing(self, prefix: str) -> Listing:
        """Lists one level."""
        known = self._known.listings.get(prefix)
        return self.objects.list(prefix) if known is None else known

    def sizes(self, prefix: str) -> Mapping[str, int]:
        """Returns the sizes of all files under a prefix."""
        known = self._known.sizes.get(prefix)
        return self.objects.trees([prefix])[prefix] if known is None else known
