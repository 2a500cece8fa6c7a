"""The store protocol: typed records over `ObjectStore`, with the rules of when a write counts.

It knows the records and their layout; it decides nothing about what should run (that is `core`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Self

import msgspec

from orchestrator import formats
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
from orchestrator.core.state import Attempt
from orchestrator.core.sweep import Input, StageInstance, Sweep
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.formats import FORMAT
from orchestrator.store import layout, opening
from orchestrator.store.access import Prefetched, R, Records, new_nonce, read_header
from orchestrator.store.objects import ObjectStore, PosixStore, open_objects
from orchestrator.store.patience import Outage, PatientStore, is_transient, told


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
            raise opening.refused(records.objects.root, cause) or error from cause
        raise
    url, found = records.objects.url, mark.format if mark else None
    if problem:
        found = read_header(records.objects.get(layout.STORE) or b"").format
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
                opening.make_root(objects.root, shared=shared)
                opening.follow_root(objects.root)
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


class Ledger(Records):
    """The records of one store, with the rules of when a write counts."""

    def __init__(
        self, objects: ObjectStore, known: Prefetched | None = None, *, store_format: int | None = None
    ) -> None:
        super().__init__(objects, known, store_format=store_format)
        self._done: dict[tuple[str, str, int], Done] = {}
        self._retired: dict[str, Retired] = {}

    def knowing(self, known: Prefetched) -> Self:
        """Returns a ledger that takes these answers for the store's, for a view of one moment."""
        ledger = super().knowing(known)
        ledger._done, ledger._retired = self._done, self._retired  # what never changes is shared
        return ledger

    def patient(self, outage: Outage) -> Ledger:
        """Return a ledger that waits while a shared folder does not answer; of a bucket, itself."""
        if not isinstance(self.objects, PosixStore):
            return self
        return Ledger(PatientStore(self.objects.root, outage), store_format=self._store_format)

    # Stages

    def numbers(self, node: StageInstance) -> list[int]:
        """Returns the numbers of a stage's attempts that may exist, ascending."""
        folders = self.listing(layout.attempts(node.stage, node.digest)).folders
        return sorted(int(name) for name in folders if name.isdigit())

    def last_number(self, node: StageInstance, number: int) -> int:
        """Return the highest number of a stage's attempts, given one that exists.

        Numbers are taken one after the other, and hardly a stage that is done was tried again: to ask for
        the next claim costs a folder a third of what its list of attempts does.
        """
        if layout.attempts(node.stage, node.digest) in self._known.listings:
            return max([number, *self.numbers(node)])
        while self.is_claimed(node, number + 1):
            number += 1
        return number

    def attempts(self, node: StageInstance) -> tuple[Attempt, ...]:
        """Reads all attempts of a stage; a folder without a claim is none."""
        numbers, ledger = self.numbers(node), self
        if not self._known.records:
            keys = [layout.attempt(node.stage, node.digest, n, r) for n in numbers for r in layout.RECORDS]
            ledger = self.having_read(keys)
        return tuple(a for n in numbers if (a := ledger.attempt(node, n)) is not None)

    def attempt(self, node: StageInstance, number: int) -> Attempt | None:
        """Reads the records of one attempt, None when it was never claimed."""

        def record(name: str, kind: type[R]) -> R | None:
            found, problem = self.read(layout.attempt(node.stage, node.digest, number, name), kind)
            if problem:
                problems.append(problem)
            return found

        problems: list[str] = []
        claim = record(layout.CLAIM, Claim)
        if claim is None and not problems:
            return None
        end = record(layout.END, End)
        heartbeat = None if end else record(layout.HEARTBEAT, Heartbeat)
        start = record(layout.START, StartRecord)
        return Attempt(number, claim, start, heartbeat, end, "; ".join(problems))

    def claim(self, node: StageInstance, number: int, claim: Claim) -> bool:
        """Tries to become the owner of attempt `number`; the store lets one win."""
        return self.create(layout.attempt(node.stage, node.digest, number, layout.CLAIM), claim, claim.nonce)

    def is_claimed(self, node: StageInstance, number: int) -> bool:
        """Whether attempt `number` exists."""
        return self.objects.get(layout.attempt(node.stage, node.digest, number, layout.CLAIM)) is not None

    def put(self, node: StageInstance, number: int, name: str, record: StartRecord | Heartbeat) -> None:
        """Writes a single-writer record of one's own attempt."""
        self.objects.put(layout.attempt(node.stage, node.digest, number, name), self.encode(record))

    def heartbeat(self, node: StageInstance, number: int) -> Heartbeat | None:
        """Reads an attempt's heartbeat, None when absent or unreadable."""
        return self.read(layout.attempt(node.stage, node.digest, number, layout.HEARTBEAT), Heartbeat)[0]

    def end(self, node: StageInstance, number: int, end: End) -> bool:
        """Ends one's own attempt."""
        return self.create(layout.attempt(node.stage, node.digest, number, layout.END), end, end.nonce)

    def finish(self, done: Done) -> bool:
        """Creates the fact that a stage is done; False when another attempt did so first."""
        return self.create(layout.done(done.stage, done.digest, done.generation), done, done.nonce)

    def void(self, node: StageInstance, void: Void) -> bool:
        """Declares that a generation no longer counts; False when it was void already."""
        return self.create(layout.void(node.stage, node.digest, void.generation), void, void.nonce)

    def generations(self, index: str) -> dict[str, set[int]]:
        """Reads a flat index (`done/<stage>` or `void/<stage>`): digest to generations."""
        found: dict[str, set[int]] = {}
        for name in self.listing(index).files:
            if (parsed := layout.parse_generation(name)) is not None:
                found.setdefault(parsed[0], set()).add(parsed[1])
        return found

    def product(self, node: StageInstance, generation: int) -> tuple[Done | None, str]:
        """Reads a `done` record; they never change, so each is read once."""
        key = (node.stage, node.digest, generation)
        if key not in self._done:
            done, problem = self.read(
                layout.done(*key), Done, stage=node.stage, digest=node.digest, generation=generation
            )
            if done is None:
                return None, problem
            self._done[key] = done
        return self._done[key], ""

    def has_read(self, node: StageInstance, generation: int) -> bool:
        """Whether a `done` record was read before."""
        return (node.stage, node.digest, generation) in self._done

    def is_done_or_void(self, node: StageInstance, generation: int) -> bool:
        """Whether an attempt that makes this generation has nothing left to do."""
        keys = [key(node.stage, node.digest, generation) for key in (layout.done, layout.void)]
        return any(data is not None for data in self.objects.get_many(keys).values())

    def is_discarded(self, stage: StageInstance | Input, generation: int) -> bool:
        """Whether a user said that a generation must not be built on; an unreadable void may say so."""
        void, problem = self.read(
            layout.void(stage.stage, stage.digest, generation), Void, generation=generation
        )
        return bool(problem) or (void is not None and void.kind != "damaged")

    def discarded_input(self, node: StageInstance, done: Done) -> str:
        """Names an input of a product that was discarded, "" when there is none."""
        for taken in node.inputs:
            if self.is_discarded(taken, done.inputs.get(taken.digest, 0)):
                return f"it was made from a product of {taken.stage} that was discarded"
        return ""

    def retire(self, stage: StageInstance | Input, retired: Retired) -> bool:
        """Records what is to be deleted of a product; False when that was decided before."""
        key = layout.retired(stage.stage, retired.policy, stage.digest, retired.generation)
        return self.create(key, retired, retired.nonce)

    def retired(self, stage: StageInstance | Input, generation: int) -> tuple[Retired, ...]:
        """Reads what was retired of a product; an unreadable record excuses no missing file."""
        for policy in RETIRING:
            key = layout.retired(stage.stage, policy, stage.digest, generation)
            if key not in self._retired:
                found, _ = self.read(key, Retired, generation=generation, policy=policy)
                if found is not None:
                    self._retired[key] = found
        keys = (layout.retired(stage.stage, policy, stage.digest, generation) for policy in RETIRING)
        return tuple(self._retired[key] for key in keys if key in self._retired)

    def retired_generations(self, stage: str) -> dict[str, set[int]]:
        """Reads the flat index of a stage's retired products: digest to generations."""
        found: dict[str, set[int]] = {}
        for policy in RETIRING:
            for digest, generations in self.generations(layout.retired_index(stage, policy)).items():
                found.setdefault(digest, set()).update(generations)
        return found

    def retired_input(self, node: StageInstance, generations: Mapping[str, int]) -> str:
        """Names an input of which files were retired, "" when all are whole."""
        for taken in node.inputs:
            if self.retired(taken, generations.get(taken.digest, 0)):
                return taken.stage
        return ""

    # Sweeps

    def sweeps(self) -> tuple[str, ...]:
        """Returns the names of all sweeps that were ever sealed here."""
        return self.objects.list("sweeps").folders

    def revision_numbers(self, sweep: str) -> list[int]:
        """Returns the numbers of a sweep's revisions, ascending."""
        return self.record_numbers(layout.revisions(sweep))

    def record_numbers(self, prefix: str) -> list[int]:
        """Returns the numbers of ``<k>.json`` under a prefix, ascending; other names are none of ours."""
        parts = (name.partition(".") for name in self.listing(prefix).files)
        return sorted(int(stem) for stem, _, suffix in parts if suffix == "json" and stem.isdecimal())

    def revision(self, sweep: str, number: int) -> Revision:
        """Reads a sealed revision.

        Raises:
            UserError: there is no such revision.
            InfrastructureError: it is unreadable.
        """
        key = layout.revision(sweep, number)
        revision, problem = self.read(key, Revision, number=number)
        if revision is not None and (revision.sweep.name != sweep or not self._is_whole(key, revision)):
            revision, problem = None, f"{key} is not the sweep that its digest names"
        if revision is None and problem:
            raise InfrastructureError(f"revision {sweep}@{number} cannot be trusted: {problem}")
        if revision is None:
            known = ", ".join(f"{sweep}@{n}" for n in self.revision_numbers(sweep)) or "none yet"
            raise UserError(
                f"no revision {sweep}@{number}", where=self.objects.url, allowed=f"known: {known}"
            )
        return revision

    def _is_whole(self, key: str, revision: Revision) -> bool:
        """Whether a revision holds what its digest names; that is compared, never believed."""
        if content_digest(revision.sweep) == revision.content:
            return True
        tree = msgspec.json.decode(self.objects.get(key) or b"{}").get(
            "sweep"
        )  # as an earlier version wrote it
        return hashlib.sha256(formats.canonical_tree(tree, Sweep)).hexdigest() == revision.content

    def find_content(self, sweep: str, content: str) -> int | None:
        """Returns the number of the revision with this content digest, None when it was never sealed."""
        for number in reversed(self.revision_numbers(sweep)):
            key = layout.revision(sweep, number)
            data = self.objects.get(key)
            if data is not None and read_header(data).content == content:
                revision, _ = self.read(key, Revision, number=number)
                if revision is not None and self._is_whole(key, revision):
                    return number
        return None

    def seal(self, revision: Callable[[int], Revision], name: str, content: str) -> Revision:
        """Seals a revision under the next free number, or returns the equal one that exists."""
        while True:
            number = self.find_content(name, content)
            if number is not None:
                return self.revision(name, number)
            number = max(self.revision_numbers(name), default=0) + 1
            record = revision(number)
            if self.create(layout.revision(name, number), record, record.nonce):
                return record

    def requests(self, sweep: str, problems: list[str] | None = None) -> list[Request]:
        """Reads all requests of a sweep, oldest first; an unreadable one is named in `problems`."""
        found = []
        keys = {layout.request(sweep, n): n for n in self.record_numbers(layout.requests(sweep))}
        ledger = self.having_read(keys)
        for key, number in keys.items():
            try:
                request, problem = ledger.read(key, Request, number=number)
            except InfrastructureError as error:
                if is_transient(error):
                    raise
                request, problem = None, f"{key} cannot be read: {told(error)}"
            if request is not None:
                found.append(request)
                if request.verb == "unknown":
                    problem = f"{key} asks for what this version does not know: it changes nothing here"
            if not problem:
                continue
            if problems is not None:
                problems.append(problem)
        return found

    def add_request(self, sweep: str, request: Request) -> Request:
        """Appends a request under the next free number."""
        while True:
            number = max(self.record_numbers(layout.requests(sweep)), default=0) + 1
            numbered = formats.kept(request, msgspec.structs.replace(request, number=number))
            if self.create(layout.request(sweep, number), numbered, numbered.nonce):
                return numbered


def content_digest(sweep: Sweep) -> str:
    """Returns what tells two revisions apart: sha-256 of the sealed content, hexadecimal."""
    return hashlib.sha256(formats.canonical(sweep)).hexdigest()


def open_ledger(url: str, *, create: bool = False, at: str = "", shared: bool = False) -> Ledger:
    """Opens a store; with `create`, makes it one if needed, and proves that a second create is refused.

    What this process makes from now on takes its group and other bits from the folder of the store.

    Raises:
        UserError: unknown scheme, no such bucket, not writable, or of a newer format.
        InfrastructureError: the place does not answer, or lets two writers create the same key.
    """
    objects = open_objects(url)
    opening.look(objects, layout.STORE)
    if isinstance(objects, PosixStore):
        opening.follow_root(objects.root)
    store_format = check_mark(Records(objects))
    if create:
        make_store(objects, at, shared=shared)
        store_format = check_mark(Records(objects))  # what stands may be another's
    return Ledger(objects, store_format=store_format)
