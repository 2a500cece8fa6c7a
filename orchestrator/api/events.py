"""The history of a sweep as events, one for each record of something that happened.

An event's id is the key of its record, so it is the same on every machine. Events are sorted by the time in
the record, to the second, and then by what can only follow what::

    request < submission < claim < product < end < void < retired < job_end

A record becomes visible a moment after the time that it names. An event is therefore only shown when it is
`SETTLE_S` old: until then, one with an earlier place could still appear, and whoever goes on after the last
id would miss it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from orchestrator.core.gates import gates_of
from orchestrator.core.records import Claim, Done, End, Request, Retired, Void
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import DamagedRecord, UserError
from orchestrator.jobs.records import JobEndBatch, Submission
from orchestrator.provenance import age_s
from orchestrator.store import layout
from orchestrator.store.access import Prefetched
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Listing

SETTLE_S = 3.0
"""Age at which an event is shown, in seconds: one for the resolution of times, the rest for the write."""

REMOTE_SETTLE_S = 10.0
"""The same over a network file system or a bucket, where machines' clocks and views differ more."""

_RANKS = ("request", "submission", "claim", "product", "end", "void", "retired", "job_end")


class Event(NamedTuple):
    """Something that happened to a sweep.

    Attributes:
        place: by which events are sorted; equal for no two events.
        id: the key of the record without its ending; of one job's end also its index.
        kind: such as ``claim``.
        at: time in the record, UTC in ISO 8601; "" if it has none.
        facts: the fields of the record that matter.
    """

    place: tuple[Any, ...]
    id: str
    kind: str
    at: str
    facts: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return the event as one flat object."""
        return {"id": self.id, "event": self.kind, "at": self.at, **self.facts}


def _event(kind: str, key: str, at: str, depth: int, number: int, /, **facts: Any) -> Event:
    id_ = key.removesuffix(".json")
    return Event((at, depth, number, _RANKS.index(kind), id_), id_, kind, at, facts)


class History:
    """The events of a sweep.

    Args:
        ledger: the store.
        sweep: name of the sweep.
        revision: the only revision that counts; None for all of them.

    Attributes:
        left_out: number of each revision that cannot be trusted, to the reason.
    """

    def __init__(self, ledger: Ledger, sweep: str, revision: int | None = None) -> None:
        self._ledger, self._sweep, self._revision = ledger, sweep, revision
        # Sealed revisions and ended attempts never change, so each is read once.
        self._known: dict[int, dict[str, _Placed]] = {}
        self.left_out: dict[int, str] = {}
        self._growing: set[int] = set()
        self._rehearsed: dict[int, dict[str, _Placed]] = {}
        self._records: dict[str, Any] = {}
        self._seen_s: dict[str, float] = {}
        self._is_settled = False
        remote = ledger.objects.min_lease_s > 0
        self._settle_s = REMOTE_SETTLE_S if remote else SETTLE_S

    def settled(self) -> list[Event]:
        """Return the events that are old enough, in order."""
        events, now_s = self.all(), time.monotonic()
        # A writer's clock may be ahead, so an event also counts as old after it was seen for long enough.
        return [
            event
            for event in events
            if self._is_settled
            or age_s(event.at) >= self._settle_s
            or now_s - self._seen_s.setdefault(event.id, now_s) >= self._settle_s
        ]

    def snapshot(self) -> list[Event]:
        """Return all events of this moment in order; wait a few seconds if the newest could be overtaken."""
        started_s, events = time.time(), self.all()
        young_s = min((age_s(event.at) for event in events if event.at), default=self._settle_s)
        if self._is_settled or young_s >= self._settle_s:
            return events
        # A writer's clock may be ahead, which is no reason to wait for longer.
        time.sleep(min(self._settle_s, self._settle_s - young_s))
        known = {event.id for event in events}
        return [
            event for event in self.all() if event.id in known or age_s(event.at) >= time.time() - started_s
        ]

    def all(self) -> list[Event]:
        """Return all events that can be read now, in order."""
        self._ledger = self._ledger.renewed()
        sealed = self._instances()
        instances = {**self._gates(), **sealed}
        self._ledger = self._ledger.reading_ahead(lambda: self._ahead(instances))
        found = [*self._requests(), *self._submissions()]
        is_open = False
        for instance, depth in instances.values():
            for number in self._ledger.numbers(instance):
                end: End | None = self._read(layout.attempt(instance, number, layout.END), End)
                claim: Claim | None = self._read(layout.attempt(instance, number, layout.CLAIM), Claim)
                if claim is not None:
                    found += _of_attempt(instance, number, claim, end, depth)
                    is_open |= end is None
        products = [*self._products(instances)]
        found += products
        done = {event.facts["digest"] for event in products if event.kind == "product"}
        # When all is made and nobody works, no worker can add an event any more. No gate is needed then.
        self._is_settled = not is_open and done >= sealed.keys()
        return sorted(found, key=lambda event: event.place)

    def _instances(self) -> dict[str, _Placed]:
        """Return the stage instances of the revisions by digest."""
        numbers = [self._revision] if self._revision else self._ledger.revision_numbers(self._sweep)
        found: dict[str, _Placed] = {}
        for number in (each for each in numbers if each not in self.left_out):
            if number not in self._known or number in self._growing:
                try:
                    sweep = self._ledger.revision(self._sweep, number).sweep
                except DamagedRecord as error:
                    if self._revision:
                        raise
                    self.left_out[number] = error.what
                    continue
                self._known[number] = _placed(sweep.stages)
                self._growing |= {number} if sweep.search is not None else set()
            found |= self._known[number]
        return found

    def _gates(self) -> dict[str, _Placed]:
        """Return the gates of all launches and reruns of the revisions by digest."""
        found: dict[str, _Placed] = {}
        known = self._known.keys() - self.left_out.keys()  # a search may be damaged while it grows
        for number in self._ledger.record_numbers(layout.requests(self._sweep)):
            request: Request | None = self._read(layout.request(self._sweep, number), Request)
            if request is None or request.gates is None or request.revision not in known:
                continue
            if number not in self._rehearsed or request.revision in self._growing:
                sweep = self._ledger.revision(self._sweep, request.revision).sweep
                gates = gates_of(sweep, request.gates, request.cells).instances
                placed = _placed({**sweep.stages, **gates})
                self._rehearsed[number] = {digest: placed[digest] for digest in gates}
            found |= self._rehearsed[number]
        return found

    def _ahead(self, instances: Mapping[str, _Placed]) -> Prefetched:
        """List and read in bulk what is new."""
        objects, stages = self._ledger.objects, {instance.stage for instance, _ in instances.values()}
        flat = [index(stage) for stage in stages for index in (layout.done_index, layout.void_index)]
        flat += [layout.retired_index(stage, policy) for stage in stages for policy in RETIRING]
        listings = objects.list_many(flat)
        keys = [
            f"{index}/{name}"
            for index, listing in listings.items()
            for name in listing.files
            if name.partition(".")[0] in instances
        ]
        for prefix, paths in objects.trees(map(layout.stage_records, stages)).items():
            listings |= layout.levels(prefix, paths)
            keys += [
                f"{prefix}/{path}"
                for path in paths
                if path.partition("/")[0] in instances and path.endswith((layout.CLAIM, layout.END))
            ]
        records = objects.get_many(key for key in keys if key not in self._records)
        for instance, _ in instances.values():
            # What a listing lacks is absent, and need not be requested one by one.
            for number in listings.get(layout.attempts(instance), Listing((), ())).folders:
                for name in (layout.CLAIM, layout.END):
                    records.setdefault(f"{layout.attempts(instance)}/{number}/{name}", None)
        return Prefetched(records, listings)

    def _read(self, key: str, kind: type[Any]) -> Any:
        """Read a record that never changes; return None if it is absent or unreadable."""
        if key not in self._records:
            record, _ = self._ledger.read(key, kind)
            if record is None:
                return None
            self._records[key] = record
        return self._records[key]

    def _requests(self) -> Iterator[Event]:
        for number in self._ledger.record_numbers(layout.requests(self._sweep)):
            key = layout.request(self._sweep, number)
            request: Request | None = self._read(key, Request)
            if request is not None and self._revision in (None, request.revision):
                yield _event(
                    *("request", key, request.at, -2, number),
                    sweep=self._sweep,
                    number=number,
                    verb=request.verb,
                    revision=request.revision,
                    cells=request.cells,
                    by=request.by,
                    reason=request.reason,
                )

    def _submissions(self) -> Iterator[Event]:
        for number in self._ledger.record_numbers(layout.submissions(self._sweep)):
            key = layout.submission(self._sweep, number)
            submission: Submission | None = self._read(key, Submission)
            if submission is None or self._revision not in (None, submission.revision):
                continue
            yield _event(
                *("submission", key, submission.at, -1, number),
                sweep=self._sweep,
                number=number,
                request=submission.request,
                revision=submission.revision,
                launcher=submission.launcher,
                cluster=submission.cluster,
                num_jobs=len(submission.tasks),
                by=submission.by,
            )
            yield from self._job_ends(submission)

    def _job_ends(self, submission: Submission) -> Iterator[Event]:
        """Yield the end of each job of a submission; the first record of an end counts."""
        known = set()
        for k in self._ledger.record_numbers(layout.closings(self._sweep, submission.number)):
            key = layout.closing(self._sweep, submission.number, k)
            batch: JobEndBatch | None = self._read(key, JobEndBatch)
            for over in batch.over if batch else ():
                if over.index in known:
                    continue
                known.add(over.index)
                yield _event(
                    *(
                        "job_end",
                        f"{key.removesuffix('.json')}/{over.index}",
                        batch.at if batch else "",
                        1 << 20,
                        k,
                    ),
                    sweep=self._sweep,
                    submission=submission.number,
                    index=over.index,
                    cells=submission.tasks[over.index] if over.index < len(submission.tasks) else (),
                    word=over.word,
                    cause=over.cause,
                    detail=over.detail,
                    node=over.node,
                    seconds=over.seconds,
                )

    def _products(self, instances: Mapping[str, _Placed]) -> Iterator[Event]:
        """Yield the products, voids and retirements, which lie in flat indexes."""
        for stage in {instance.stage for instance, _ in instances.values()}:
            for placed, generation in self._indexed(layout.done_index(stage), instances):
                yield from self._product(*placed, generation)
            for placed, generation in self._indexed(layout.void_index(stage), instances):
                yield from self._void(*placed, generation)
            for policy in RETIRING:
                for placed, generation in self._indexed(layout.retired_index(stage, policy), instances):
                    yield from self._retired(*placed, generation, policy)

    def _indexed(self, index: str, instances: Mapping[str, _Placed]) -> Iterator[tuple[_Placed, int]]:
        for digest, generations in self._ledger.generations(index).items():
            yield from ((instances[digest], number) for number in generations if digest in instances)

    def _product(self, instance: StageInstance, depth: int, generation: int) -> Iterator[Event]:
        key = layout.done(instance, generation)
        done: Done | None = self._read(key, Done)
        if done is not None:
            yield _event(
                *("product", key, done.at, depth, done.attempt),
                stage=instance.name,
                digest=instance.digest,
                attempt=done.attempt,
                generation=generation,
                num_files=len(done.files),
                num_rows=len(done.rows),
                seconds=done.seconds,
            )

    def _void(self, instance: StageInstance, depth: int, generation: int) -> Iterator[Event]:
        key = layout.void(instance, generation)
        void: Void | None = self._read(key, Void)
        if void is not None:
            yield _event(
                *("void", key, void.at, depth, 1 << 20),
                stage=instance.name,
                digest=instance.digest,
                generation=generation,
                kind=void.kind,
                reason=void.reason,
                by=void.by,
            )

    def _retired(self, instance: StageInstance, depth: int, generation: int, policy: str) -> Iterator[Event]:
        key = layout.retired(instance, policy, generation)
        retired: Retired | None = self._read(key, Retired)
        if retired is not None:
            yield _event(
                *("retired", key, retired.at, depth, 1 << 20),
                stage=instance.name,
                digest=instance.digest,
                generation=generation,
                policy=policy,
                num_files=len(retired.files),
                why=retired.why,
                by=retired.by,
            )


def _of_attempt(
    instance: StageInstance, number: int, claim: Claim, end: End | None, depth: int
) -> Iterator[Event]:
    named = {"stage": instance.name, "digest": instance.digest, "attempt": number}
    yield _event(
        *("claim", layout.attempt(instance, number, layout.CLAIM), claim.at, depth, number),
        **named,
        sweep=claim.sweep,
        cell=claim.cell,
        host=claim.owner.host,
        job=claim.owner.job,
        generation=claim.generation,
        supersedes=claim.supersedes.attempt if claim.supersedes else None,
    )
    if end is not None:
        yield _event(
            *("end", layout.attempt(instance, number, layout.END), end.at, depth, number),
            **named,
            outcome=end.outcome,
            cause=end.cause,
            why=end.why,
            message=end.message,
            seconds=end.seconds,
        )


_Placed = tuple[StageInstance, int]
"""A stage instance, and the length of the longest chain of inputs before it."""


def _placed(stages: Mapping[str, StageInstance]) -> dict[str, _Placed]:
    depths: dict[str, int] = {}
    for digest, instance in stages.items():  # inputs come before their consumers
        depths[digest] = 1 + max((depths.get(taken.digest, 0) for taken in instance.inputs), default=-1)
    return {digest: (instance, depths[digest]) for digest, instance in stages.items()}


def after(events: list[Event], id_: str | None) -> list[Event]:
    """Return the events that follow the one with this id; all of them for None.

    Raises:
        UserError: no event has this id.
    """
    if id_ is None:
        return events
    place = next((number for number, event in enumerate(events) if event.id == id_), None)
    if place is None:
        raise UserError(f"no event {id_!r}", where="--after", allowed="an id that `sweep events` printed")
    return events[place + 1 :]
