"""The store protocol: typed records over `ObjectStore`, with the rules for when a write counts.

This module reads and writes records. What should run is decided in `core`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Self

import msgspec

from orchestrator import formats
from orchestrator.core.evidence import Attempt
from orchestrator.core.records import (
    Claim,
    Done,
    End,
    Heartbeat,
    Request,
    Retired,
    Revision,
    StartRecord,
    StoreMark,
    Void,
)
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.errors import DamagedRecord, InfrastructureError, UserError
from orchestrator.registry import INDEXED, load
from orchestrator.store import layout, opening
from orchestrator.store.access import (
    Outage,
    PatientStore,
    Prefetched,
    R,
    Records,
    error_line,
    is_transient,
    read_header,
)
from orchestrator.store.objects import ObjectStore, PosixStore

_WITH_ROUNDS = "orchestrator.store.decisions:with_rounds"


def check_mark(records: Records) -> int | None:
    """Return the format of a store; None when the place has no store yet.

    Raises:
        UserError: The store has a later format, or denies access.
        InfrastructureError: The place does not answer, or its mark cannot be trusted.
    """
    try:
        mark, problem = records.read(layout.STORE, StoreMark)
    except InfrastructureError as error:
        cause = error.__cause__
        if isinstance(records.objects, PosixStore) and isinstance(cause, OSError):
            raise opening.refused(records.objects.root, cause) or error from cause
        raise
    url, found = records.objects.url, mark.format if mark else None
    if problem:
        # The mark of a later format may be unreadable except for its number. Then the fix is an upgrade.
        found = read_header(records.objects.get(layout.STORE) or b"").format
        if found is None or found <= formats.FORMAT:
            raise InfrastructureError(f"the store's mark cannot be trusted: {problem}", where=url)
    if found is not None and found > formats.FORMAT:
        raise UserError(
            f"the store is of format {found}, this Polysweep reads up to {formats.FORMAT}",
            where=url,
            fix="upgrade Polysweep, or use another store: store.url=FOLDER",
        )
    return found


class Ledger(Records):
    """The records of one store, with the rules for when a write counts."""

    def __init__(
        self, objects: ObjectStore, known: Prefetched | None = None, *, store_format: int | None = None
    ) -> None:
        super().__init__(objects, known, store_format=store_format)
        self._done: dict[tuple[str, str, int], Done] = {}
        self._retired: dict[str, Retired] = {}
        self._requests: dict[str, Request] = {}

    def knowing(self, known: Prefetched) -> Self:
        """Return a ledger that answers from prefetched results, as a snapshot of one moment."""
        ledger = super().knowing(known)
        ledger._done, ledger._retired = self._done, self._retired  # records that never change can be shared
        ledger._requests = self._requests
        return ledger

    def renewed(self) -> Ledger:
        """Return a ledger that looks again; this one where it holds nothing of an earlier look."""
        return self

    def indexed(self) -> Ledger:
        """Return a ledger for readers, which keeps an index of a bucket; this one for a folder."""
        return self if isinstance(self.objects, PosixStore) else load(INDEXED)(self)

    def look_up(
        self,
        instances: Iterable[StageInstance],
        formers: Iterable[StageInstance],
        *,
        trusted: set[tuple[str, int]],
        sized: bool,
    ) -> Ledger | None:
        """Return a ledger that has read all about these stages; None without an index to help with it."""
        return None

    def has_revision(self, sweep: str, number: int) -> bool:
        """Return whether a revision was sealed."""
        return number in self.revision_numbers(sweep)

    def patient(self, outage: Outage) -> Ledger:
        """Return a ledger that waits while a shared folder does not answer; this one for a bucket."""
        if not isinstance(self.objects, PosixStore):
            return self
        return Ledger(PatientStore(self.objects.root, outage), store_format=self._store_format)

    # Stages

    def numbers(self, instance: StageInstance) -> list[int]:
        """Return the numbers of a stage's attempts in ascending order. Some may have no claim."""
        return sorted(int(name) for name in self.listing(layout.attempts(instance)).folders if name.isdigit())

    def last_number(self, instance: StageInstance, number: int) -> int:
        """Return the highest number of a stage's attempts, given the number of one that exists.

        Numbers are consecutive, and few finished stages were tried again. On a folder, probing for the next
        claim takes a third of the time of listing all attempts.
        """
        if self._known.listings and layout.attempts(instance) in self._known.listings:
            return max([number, *self.numbers(instance)])
        objects = self.objects
        is_there = objects.seems_there if isinstance(objects, PosixStore) else objects.get
        while is_there(layout.attempt(instance, number + 1, layout.CLAIM)):
            number += 1
        return number

    def attempts(self, instance: StageInstance) -> tuple[Attempt, ...]:
        """Read all attempts of a stage; a folder without a claim is not an attempt."""
        numbers, ledger = self.numbers(instance), self
        if not self._known.records:
            keys = [layout.attempt(instance, n, r) for n in numbers for r in layout.RECORDS]
            ledger = self.having_read(keys)
        return tuple(a for n in numbers if (a := ledger.attempt(instance, n)) is not None)

    def attempt(self, instance: StageInstance, number: int) -> Attempt | None:
        """Read the records of one attempt; return None when it was never claimed."""

        def record(name: str, kind: type[R]) -> R | None:
            found, problem = self.read(layout.attempt(instance, number, name), kind)
            if problem:
                problems.append(problem)
            return found

        problems: list[str] = []
        claim = record(layout.CLAIM, Claim)
        if claim is None and not problems:
            return None
        end = record(layout.END, End)
        # An ended attempt needs no heartbeat, which saves a read for most attempts.
        heartbeat = None if end else record(layout.HEARTBEAT, Heartbeat)
        start = record(layout.START, StartRecord)
        return Attempt(number, claim, start, heartbeat, end, "; ".join(problems))

    def claim(self, instance: StageInstance, number: int, claim: Claim) -> bool:
        """Try to become the owner of attempt `number`; return True for the only winner."""
        return self.create(layout.attempt(instance, number, layout.CLAIM), claim, claim.nonce)

    def is_claimed(self, instance: StageInstance, number: int) -> bool:
        """Return whether attempt `number` exists."""
        return self.objects.get(layout.attempt(instance, number, layout.CLAIM)) is not None

    def put(self, instance: StageInstance, number: int, name: str, record: StartRecord | Heartbeat) -> None:
        """Write or replace a record of one's own attempt. Only the owner may do that."""
        self.objects.put(layout.attempt(instance, number, name), self.encode(record))

    def heartbeat(self, instance: StageInstance, number: int) -> Heartbeat | None:
        """Read an attempt's heartbeat; return None when it is absent or unreadable."""
        return self.read(layout.attempt(instance, number, layout.HEARTBEAT), Heartbeat)[0]

    def end(self, instance: StageInstance, number: int, end: End) -> bool:
        """Record the end of one's own attempt."""
        return self.create(layout.attempt(instance, number, layout.END), end, end.nonce)

    def finish(self, done: Done) -> bool:
        """Record that a stage is done; return False when another attempt did so first."""
        return self.create(layout.done(done, done.generation), done, done.nonce)

    def void(self, instance: StageInstance, void: Void) -> bool:
        """Record that a generation no longer counts; return False when it was void already."""
        return self.create(layout.void(instance, void.generation), void, void.nonce)

    def generations(self, index: str) -> dict[str, set[int]]:
        """Read a flat index (`done/<stage>` or `void/<stage>`) as digest to generations."""
        found: dict[str, set[int]] = {}
        for name in self.listing(index).files:
            if (parsed := layout.parse_generation(name)) is not None:
                found.setdefault(parsed[0], set()).add(parsed[1])
        return found

    def product(self, instance: StageInstance, generation: int) -> tuple[Done | None, str]:
        """Read a `done` record. These records never change, so each is read only once."""
        key = (instance.stage, instance.digest, generation)
        if key not in self._done:
            done, problem = self.read(
                layout.done(instance, generation),
                Done,
                stage=instance.stage,
                digest=instance.digest,
                generation=generation,
            )
            if done is None:
                return None, problem
            self._done[key] = done
        return self._done[key], ""

    def learn(self, found: Iterable[Done]) -> None:
        """Take over `done` records that were read under their keys."""
        self._done |= {(done.stage, done.digest, done.generation): done for done in found}

    def has_read(self, instance: StageInstance, generation: int) -> bool:
        """Return whether a `done` record was read before."""
        return (instance.stage, instance.digest, generation) in self._done

    def is_done_or_void(self, instance: StageInstance, generation: int) -> bool:
        """Return whether an attempt at this generation has become pointless."""
        keys = [key(instance, generation) for key in (layout.done, layout.void)]
        return any(data is not None for data in self.objects.get_many(keys).values())

    def is_discarded(self, of: layout.Named, generation: int) -> bool:
        """Return whether a user discarded a generation; an unreadable `void` counts as that."""
        void, problem = self.read(layout.void(of, generation), Void, generation=generation)
        return bool(problem) or (void is not None and void.kind != "damaged")

    def discarded_input(self, instance: StageInstance, done: Done) -> str:
        """Return which input of a product was discarded, as a sentence; "" when none was."""
        for taken in instance.inputs:
            if self.is_discarded(taken, done.inputs.get(taken.digest, 0)):
                return f"it was made from a product of {taken.stage} that was discarded"
        return ""

    def retire(self, of: layout.Named, retired: Retired) -> bool:
        """Record which files of a product will be deleted; return False when that was recorded before."""
        return self.create(layout.retired(of, retired.policy, retired.generation), retired, retired.nonce)

    def retired(self, of: layout.Named, generation: int) -> tuple[Retired, ...]:
        """Read a product's `retired` records. An unreadable one does not excuse a missing file."""
        keys = {layout.retired(of, policy, generation): policy for policy in RETIRING}
        for key, policy in keys.items():
            if key not in self._retired:
                found, _ = self.read(key, Retired, generation=generation, policy=policy)
                self._retired |= {} if found is None else {key: found}
        return tuple(self._retired[key] for key in keys if key in self._retired)

    def retired_generations(self, stage: str) -> dict[str, set[int]]:
        """Read the flat indexes of a stage's retired products as digest to generations."""
        found: dict[str, set[int]] = {}
        for policy in RETIRING:
            for digest, generations in self.generations(layout.retired_index(stage, policy)).items():
                found.setdefault(digest, set()).update(generations)
        return found

    def retired_input(self, instance: StageInstance, generations: Mapping[str, int]) -> str:
        """Return the stage of an input with retired files, "" when all are whole."""
        for taken in instance.inputs:
            if self.retired(taken, generations.get(taken.digest, 0)):
                return taken.stage
        return ""

    # Sweeps

    def sweeps(self) -> tuple[str, ...]:
        """Return the names of all sweeps that were ever sealed in this store."""
        return self.objects.list("sweeps").folders

    def revision_numbers(self, sweep: str) -> list[int]:
        """Return the numbers of a sweep's revisions in ascending order."""
        return self.record_numbers(layout.revisions(sweep))

    def record_numbers(self, prefix: str) -> list[int]:
        """Return the numbers of ``<k>.json`` under a prefix, ascending; skip other names."""
        parts = (name.partition(".") for name in self.listing(prefix).files)
        return sorted(int(stem) for stem, _, suffix in parts if suffix == "json" and stem.isdecimal())

    def revision(self, sweep: str, number: int, *, as_sealed: bool = False) -> Revision:
        """Read a revision; one of a search has the cells of all its rounds so far, unless `as_sealed`.

        Raises:
            UserError: There is no such revision.
            DamagedRecord: It, or a decision of a search, is unreadable or not what it claims to be.
        """
        key = layout.revision(sweep, number)
        revision, problem = self.read(key, Revision, number=number)
        if revision is not None and (revision.sweep.name != sweep or not self._is_whole(key, revision)):
            revision, problem = None, f"{key} is not the sweep that its digest names"
        if revision is None and problem:
            fix = f"put {key} back as it was, or launch the sweep's file, which seals another revision"
            raise DamagedRecord(f"revision {sweep}@{number} cannot be trusted: {problem}", fix=fix)
        if revision is None:
            known = ", ".join(f"{sweep}@{n}" for n in self.revision_numbers(sweep)) or "none yet"
            what, known = f"no revision {sweep}@{number}", f"known: {known}"
            raise UserError(what, where=self.objects.url, allowed=known)
        return load(_WITH_ROUNDS)(self, revision) if revision.sweep.search and not as_sealed else revision

    def _is_whole(self, key: str, revision: Revision) -> bool:
        """Return whether a revision's content has the digest that the revision names."""
        if content_digest(revision.sweep) == revision.content:
            return True
        # An earlier version may have written other fields; its digest covers the tree as it was written.
        tree = msgspec.json.decode(self.objects.get(key) or b"{}").get("sweep")
        return hashlib.sha256(formats.canonical_tree(tree, ComposedSweep)).hexdigest() == revision.content

    def find_content(self, sweep: str, content: str) -> int | None:
        """Return the revision number of this content digest, None when it was never sealed."""
        # Newest first: a launch usually repeats the latest revision.
        for number in reversed(self.revision_numbers(sweep)):
            key = layout.revision(sweep, number)
            if read_header(self.objects.get(key) or b"").content == content:
                revision, _ = self.read(key, Revision, number=number)
                if revision is not None and self._is_whole(key, revision):
                    return number
        return None

    def seal(self, revision: Callable[[int], Revision], name: str, content: str) -> Revision:
        """Seal a revision under the next free number, or return the revision with the same content."""
        while True:
            number = self.find_content(name, content)
            if number is not None:
                return self.revision(name, number)
            number = max(self.revision_numbers(name), default=0) + 1
            record = revision(number)
            # If another launch won this number, its content may equal ours, so the search starts again.
            if self.create(layout.revision(name, number), record, record.nonce):
                return record

    def requests(self, sweep: str, problems: list[str] | None = None) -> list[Request]:
        """Read all requests of a sweep, oldest first, each once; describe unreadable ones in `problems`."""
        found = []
        keys = {layout.request(sweep, n): n for n in self.record_numbers(layout.requests(sweep))}
        ledger = self.having_read([key for key in keys if key not in self._requests])
        for key, number in keys.items():
            request, problem = self._requests.get(key), ""
            try:
                if request is None:
                    request, problem = ledger.read(key, Request, number=number)
            except InfrastructureError as error:
                # An outage must not look like a sweep without requests.
                if is_transient(error):
                    raise
                request, problem = None, f"{key} cannot be read: {error_line(error)}"
            if request is not None:
                found.append(request)
                self._requests[key] = request
                if request.verb == "unknown":
                    problem = f"{key} asks for what this version does not know: it changes nothing here"
            if problem and problems is not None:
                problems.append(problem)
        return found

    def add_request(self, sweep: str, request: Request) -> Request:
        """Append a request under the next free number, and return it with that number."""
        while True:
            number = max(self.record_numbers(layout.requests(sweep)), default=0) + 1
            # The number is part of the record, so it is set again for each try.
            numbered = formats.kept(request, msgspec.structs.replace(request, number=number))
            if self.create(layout.request(sweep, number), numbered, numbered.nonce):
                return numbered


def content_digest(sweep: ComposedSweep) -> str:
    """Return the sha-256 of a sweep's sealed content, hexadecimal; equal content is one revision."""
    return hashlib.sha256(formats.canonical(sweep)).hexdigest()


def open_ledger(url: str, *, create: bool = False, at: str = "", shared: bool = False) -> Ledger:
    """Open a store; with `create`, make it if needed, and prove that a second create of a key is refused.

    From then on, new files of this process take their group and other permissions from the store's folder.

    Raises:
        UserError: Unknown scheme, no such bucket, not writable, or a later format.
        InfrastructureError: The place does not answer, or lets two writers create the same key.
    """
    objects = opening.open_objects(url)
    opening.prepare(objects, layout.STORE)
    store_format = check_mark(Records(objects))
    if create:
        opening.make_store(objects, layout.STORE, at, shared=shared)
        store_format = check_mark(Records(objects))  # another process may have made it first
    return Ledger(objects, store_format=store_format)
