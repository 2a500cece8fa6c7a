"""The mark that makes a place a store: checking it, and making it."""

from __future__ import annotations

from orchestrator import formats
from orchestrator.core.records import StoreMark
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.formats import FORMAT
from orchestrator.store import layout, opening, permissions
from orchestrator.store.access import Records, new_nonce
from orchestrator.store.objects import ObjectStore, PosixStore
from orchestrator.store.peek import peek


def check_mark(records: Records) -> int | None:
    """Returns the format of a store, None of a place that is none yet.

    Raises:
        UserError: the store is of a later format.
        InfrastructureError: the place does not answer, or its mark cannot be trusted.
    """
    try:
        mark, problem = records.read(layout.STORE, StoreMark)
    except InfrastructureError as error:
        cause = error.__cause__
        if isinstance(records.objects, PosixStore) and isinstance(cause, OSError):
            raise permissions.refused(records.objects.root, cause) or error from cause
        raise
    url, found = records.objects.url, mark.format if mark else None
    if problem:
        found = peek(records.objects.get(layout.STORE) or b"").format
        if found is None or found <= FORMAT:
            raise InfrastructureError(f"the store's mark cannot be trusted: {problem}", where=url)
    if found is not None and found > FORMAT:
        raise UserError(
            f"the store is of format {found}, this Polysweep reads up to {FORMAT}",
            where=url,
            fix="upgrade Polysweep, or use another store: store.url=FOLDER",
        )
    return found


def make_store(objects: ObjectStore, at: str, *, shared: bool = False) -> None:
    """Makes a place a store, unless it is one, and proves at every launch that one writer wins."""
    error = OSError("it does not keep what is written")
    try:
        data = objects.get(layout.STORE)
        if data is None:
            if isinstance(objects, PosixStore):
                permissions.make_root(objects.root, shared=shared)
                permissions.follow_root(objects.root)
            try:
                objects.create(layout.STORE, formats.encode(StoreMark(nonce=new_nonce(), created_at=at)))
            except OSError as problem:  # what stands is read back: only the reply may have been lost
                error = problem
            data = objects.get(layout.STORE)
        if data is None:
            raise error
        opening.prove_exclusive(objects, layout.STORE, data)
    except OSError as problem:
        raise opening.not_writable(objects, problem) from problem
