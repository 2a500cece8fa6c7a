"""Read the evidence of many stages at once: products, attempts, and the liveness of their owners.

A product outranks an `end` record, which outranks a heartbeat. Reading never changes the store.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from orchestrator.core.evidence import Attempt, Evidence, Former, Liveness, describe_retired, remaining_files
from orchestrator.core.failure import Cause
from orchestrator.core.identity import formers, use_of
from orchestrator.core.records import Done, Heartbeat, Retired, Void
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.manifest import File, damage, damage_by_size
from orchestrator.provenance import is_gone
from orchestrator.registry import KEPT, load
from orchestrator.spec import StageSpec
from orchestrator.store import layout
from orchestrator.store.access import Prefetched, StageIndex, error_line, is_transient
from orchestrator.store.ledger import Ledger


def read_ahead(
    ledger: Ledger,
    instances: Sequence[StageInstance],
    *,
    counted: bool,
    sized: bool,
    trusted: Collection[object],
) -> Prefetched:
    """Return the indexes and records of these stages, as of now.

    Requests to a bucket cost money and time, so all is read in three rounds of bulk requests. Each round
    needs the one before: listings show which records exist, and records name the files whose sizes are
    compared.

    Args:
        ledger: The store.
        instances: Stage instances to read.
        counted: Also list the attempts of stages that are done.
        sized: Also read the sizes of the products' files.
        trusted: (digest, generation) of products whose sizes are not needed.
    """
    objects, stages = ledger.objects, sorted({instance.stage for instance in instances})
    prefixes = [index(stage) for stage in stages for index in (layout.done_index, layout.void_index)]
    # Round 1: the indexes of products, and the names of what was attempted.
    prefixes += [layout.retired_index(stage, policy) for stage in stages for policy in RETIRING]
    above = [layout.stage_records(stage) for stage in stages]
    listings = objects.list_many([*prefixes, *(() if counted else above)])
    for prefix, paths in objects.trees(above if counted else ()).items():
        listings |= layout.levels(prefix, paths)
    known = ledger.knowing(Prefetched({}, listings))

    products = _products(known, instances)
    # Round 2: `done` records, and the attempts of stages without a product.
    begun = [
        instance
        for instance in instances
        if instance.digest not in products
        and instance.digest in listings[layout.stage_records(instance.stage)].folders
    ]
    places = [layout.attempts(instance) for instance in begun]
    listings |= objects.list_many(place for place in places if place not in listings)
    keys = [
        layout.attempt(instance, number, name)
        for instance in begun
        for number in known.numbers(instance)
        for name in layout.RECORDS
    ]
    keys += [
        layout.done(instance, products[instance.digest])
        for instance in instances
        if instance.digest in products and not ledger.has_read(instance, products[instance.digest])
    ]
    records = objects.get_many(keys)
    known = ledger.knowing(Prefetched(records, listings))

    # Round 3: file sizes, of products that have not been compared before.
    wanted = [i for i in instances if sized and (i.digest, products.get(i.digest)) not in trusted]
    made = [(i, known.product(i, products[i.digest])[0]) for i in wanted if i.digest in products]
    outputs = [layout.output(instance, done.attempt) for instance, done in made if done]
    return Prefetched(records, listings, objects.trees(outputs))


def _products(known: Ledger, instances: Sequence[StageInstance]) -> dict[str, int]:
    """Return the digest and generation of products that are indexed and not void."""
    stages = {instance.stage for instance in instances}
    done = {stage: known.generations(layout.done_index(stage)) for stage in stages}
    void = {stage: known.generations(layout.void_index(stage)) for stage in stages}
    found = {}
    for instance in instances:
        generations = done[instance.stage].get(instance.digest)
        if generations and max(generations) not in void[instance.stage].get(instance.digest, set()):
            found[instance.digest] = max(generations)
    return found


class OwnerReport(NamedTuple):
    """The liveness of an attempt without an `end`, the evidence, and the failure cause if it is gone."""

    liveness: Liveness
    reason: str
    cause: Cause = Cause.NODE_LOST


MANY = 1000
"""Number of stage instances from which on it pays to keep records of a folder."""

Observer = Callable[[StageInstance, Attempt], OwnerReport]


def inspect_owner(instance: StageInstance, attempt: Attempt) -> OwnerReport:
    """Return whether an attempt's owner is alive, vanished or unknown, from a single observation.

    This needs the owner's machine. Only a watcher, which reads repeatedly, may call an owner elsewhere dead.
    """
    if attempt.claim is None:
        return OwnerReport(Liveness.UNKNOWN, "")  # reported elsewhere as unreadable
    owner, heartbeat = attempt.claim.owner, attempt.heartbeat
    processes = [owner.process] + ([heartbeat.child] if heartbeat and heartbeat.child else [])
    gone = [is_gone(process) for process in processes]
    # Both must be gone: a child without its worker may still write for a moment.
    if all(gone):
        return OwnerReport(Liveness.GONE, f"process {owner.process.pid} on {owner.host} is gone")
    where = f"process {owner.process.pid} on {owner.host}"
    if heartbeat is None:
        return OwnerReport(Liveness.UNKNOWN, f"{where}, no heartbeat yet")
    # None stands for a process that cannot be seen from here.
    alive = Liveness.ALIVE if gone[0] is False else Liveness.UNKNOWN
    stands = f"{heartbeat.phase}{progress(heartbeat)}"
    return OwnerReport(alive, f"{where}, {stands}, last heartbeat {age(heartbeat.at)} ago")


def progress(heartbeat: Heartbeat) -> str:
    """Return an attempt's progress, such as ``, step 3 of 40``; "" when it has reported none."""
    if heartbeat.step is None:
        return ""
    return f", step {heartbeat.step}" + (f" of {heartbeat.num_steps}" if heartbeat.num_steps else "")


def age(at: str) -> str:
    """Return the age of a record by its writer's clock. Clocks differ, so this is never evidence."""
    try:
        seconds = time.time() - datetime.fromisoformat(at).timestamp()
    except ValueError:
        return "some time"
    return f"{max(0, round(seconds))} s"


class EvidenceReader:
    """The evidence of a set of stages, read on demand and once each.

    Args:
        ledger: The store.
        instances: Stage instances whose evidence may be requested.
        observer: Function that judges attempts without an `end`.
        check_files: Also compare the sizes of each product's files with its record.
        count_attempts: List the attempts of stages that are done; needed only for display.
        trusted: (digest, generation) of products that were compared before; grows with each comparison.
        specs: Stage name to spec, to find products of earlier versions of a stage; None to find none. With
            specs, `instances` must hold the inputs of each stage instance.
        title: Name of the set of instances. If it is given and the set is large, a folder's records are kept
            on this machine under this name, and not read again.

    Attributes:
        ledger: The store, with what was read ahead.
        as_of: When the reader began to look, in Unix seconds. What was recorded before is in the evidence.
        listed: Stage name to what the store listed about it when the reader was made.
        unlisted: Stage name to the evidence of all its instances, if its folder could not be listed.
        formers: Digest to the instances of earlier versions of the stage.
    """

    def __init__(
        self,
        ledger: Ledger,
        instances: Iterable[StageInstance],
        *,
        observer: Observer = inspect_owner,
        check_files: bool = True,
        count_attempts: bool = True,
        trusted: set[tuple[str, int]] | None = None,
        specs: Mapping[str, StageSpec] | None = None,
        title: str = "",
    ) -> None:
        self.as_of = time.time()
        self._specs = specs or {}
        self._observer = observer
        self._check_files, self._count_attempts = check_files, count_attempts
        self._trusted = trusted if trusted is not None else set()
        self._instances: Mapping[str, StageInstance] = {instance.digest: instance for instance in instances}
        self.formers = {
            instance.digest: found
            for instance in self._instances.values()
            if instance.stage in self._specs and (found := formers(self._specs[instance.stage], instance))
        }
        former = [*itertools.chain.from_iterable(self.formers.values())]
        every, seen = self._instances.values(), self._trusted
        known = ledger.look_up(every, former, trusted=seen, sized=check_files)
        both, counted = [*every, *former], count_attempts
        self.ledger = known or ledger.reading_ahead(
            lambda: read_ahead(ledger, both, counted=counted, sized=check_files, trusted=seen)
        )
        # In the sweep's order: that of a set differs between processes.
        stages = dict.fromkeys(instance.stage for instance in self._instances.values())
        self.listed: dict[str, StageIndex] = {stage: StageIndex() for stage in stages}
        self.unlisted: dict[str, Evidence] = {}
        for stage in stages:
            try:
                self._list(stage)
            except OSError as error:  # only this stage's folder fails; the other stages are still read
                self.unlisted[stage] = _unreadable(error)
        self._evidence: dict[str, Evidence] = {}
        if title and check_files and len(self._instances) >= MANY:
            some = [each for each in self._instances.values() if each.stage not in self.unlisted]
            self._evidence |= load(KEPT)(self.ledger, some, self.listed, self._trusted, title)

    def _list(self, stage: str) -> None:
        ledger, listed = self.ledger, self.listed[stage]
        listed.done = ledger.generations(layout.done_index(stage))
        listed.void = ledger.generations(layout.void_index(stage))
        listed.retired = ledger.retired_generations(stage)
        listed.attempted = frozenset(ledger.listing(layout.stage_records(stage)).folders)

    def evidence(self, digest: str) -> Evidence:
        """Return the evidence of one stage, as of the first request for it."""
        if digest not in self._evidence:
            try:
                self._evidence[digest] = self._read(self._instances[digest])
            except (OSError, InfrastructureError) as error:
                self._evidence[digest] = _unreadable(error)
        return self._evidence[digest]

    def _read(self, instance: StageInstance) -> Evidence:
        if instance.stage in self.unlisted:
            return self.unlisted[instance.stage]
        product = self._product(instance)
        if product.done is not None:
            # A product outranks all else, so only the number of its attempts is needed.
            number = product.done.attempt
            with contextlib.suppress(OSError):
                number = self.ledger.last_number(instance, number) if self._count_attempts else number
            return Evidence((Attempt(number),), product.done, product.generation, retired=product.retired)
        is_attempted = instance.digest in self.listed[instance.stage].attempted
        attempts = self.ledger.attempts(instance) if is_attempted else ()
        if any(map(_is_finished, attempts[-1:])) and self.ledger.product(instance, product.generation)[0]:
            # The attempt finished after the index was read, and would look as if it had left no product.
            self.listed[instance.stage].done.setdefault(instance.digest, set()).add(product.generation)
            product = self._product(instance)
            if product.done is not None:
                return product._replace(attempts=(Attempt(attempts[-1].number),))
        former = self._former(instance, product.generation)
        discarded = self._discarded_attempts(instance, attempts)
        evidence = product._replace(attempts=attempts, former=former, discarded=discarded)
        if attempts and attempts[-1].end is None:
            report = self._observer(instance, attempts[-1])
            evidence = evidence._replace(
                liveness=report.liveness, liveness_reason=report.reason, liveness_cause=report.cause
            )
        return evidence

    def _former(self, instance: StageInstance, generation: int) -> Former | None:
        """Return the newest usable product of an earlier version of a stage, made from the same inputs.

        Without a usable one, return the newest with the reason. Return None after a user discarded a product
        of today's version, because then nothing old may be reused.
        """
        found: list[Former] = []
        for former in self.formers.get(instance.digest, ()):
            product, how = self._product(former), use_of(self._specs[instance.stage])
            if product.done is None and not product.problem:
                continue
            problem = product.problem
            if product.retired:
                problem = f"files of it were retired ({describe_retired(product.retired)})"
            # Equal digests are not enough: an input that was discarded and made again is another product.
            given = {taken.digest: self.evidence(taken.digest).generation for taken in instance.inputs}
            if product.done is not None and dict(product.done.inputs) != given:
                problem = problem or "it was made from other products of its inputs"
            found.append(Former(former, product.done, how, problem))
        if any(self.ledger.is_discarded(instance, number) for number in range(1, generation) if found):
            return None
        return next((each for each in found if not each.problem), found[0] if found else None)

    def _product(self, instance: StageInstance) -> Evidence:
        """Return a stage's product by rule 2, or the generation that the next attempt will make.

        The highest generation with any record decides; a lower one never counts, even when it is intact. With
        `done` records 1 and 2, generation 2 is the product. Once 2 is void, the next attempt makes 3.
        """
        listed = self.listed[instance.stage]
        done, void = listed.done.get(instance.digest, ()), listed.void.get(instance.digest, ())
        highest = max((*done, *void) if void else done, default=0)
        if highest == 0:
            return Evidence(generation=1)
        if highest in void:
            return Evidence(generation=highest + 1, problem=self._why_void(instance, highest))
        record, problem = self.ledger.product(instance, highest)
        is_retired = highest in listed.retired.get(instance.digest, set())
        retired = self.ledger.retired(instance, highest) if is_retired else ()
        if record is None:
            problem = problem or "its done record vanished"
        elif self._check_files and (instance.digest, highest) not in self._trusted:
            problem, retired = examine(self.ledger, instance, record, retired, content=False)
        if problem:
            return Evidence(generation=highest, problem=f"its product is damaged: {problem}", damaged=True)
        if record is not None and (problem := self._discarded_input(instance, record)):
            return Evidence(generation=highest, problem=problem, damaged=True)
        # Products never change, so a watcher that reads every few seconds compares the files only once.
        self._trusted.add((instance.digest, highest))
        return Evidence(done=record, generation=highest, retired=retired)

    def _discarded_input(self, instance: StageInstance, record: Done) -> str:
        """Return why a product counts as discarded, "" when it counts.

        A slow attempt may finish after a discard. The inputs must be among this reader's stages.
        """
        is_void = bool(self._void(instance.inputs, record.inputs))
        return self.ledger.discarded_input(instance, record) if is_void else ""

    def _discarded_attempts(self, instance: StageInstance, attempts: Iterable[Attempt]) -> frozenset[int]:
        """Return the attempts that finished, and whose product or an input of it was discarded."""
        found = set()
        for each in attempts:
            if each.claim is not None and _is_finished(each):
                used = {**(each.start.inputs if each.start else {}), instance.digest: each.claim.generation}
                void = self._void((instance, *instance.inputs), used)
                if any(self.ledger.is_discarded(named, used[named.digest]) for named in void):
                    found.add(each.number)
        return frozenset(found)

    def _void(self, given: Iterable[layout.Named], used: Mapping[str, int]) -> list[layout.Named]:
        pairs = ((each, self.listed.get(each.stage)) for each in given)
        return [n for n, found in pairs if found and used.get(n.digest) in found.void.get(n.digest, ())]

    def _why_void(self, instance: StageInstance, generation: int) -> str:
        void, problem = self.ledger.read(layout.void(instance, generation), Void, generation=generation)
        return problem if void is None else f"its product was {void.kind}: {void.reason}"


def _unreadable(error: Exception) -> Evidence:
    return Evidence(unreadable=f"cannot be read: {error_line(error)}", is_passing=is_transient(error))


def _is_finished(attempt: Attempt) -> bool:
    return attempt.end is not None and attempt.end.outcome == "succeeded"


def examine(
    ledger: Ledger,
    instance: StageInstance,
    done: Done,
    retired: tuple[Retired, ...] = (),
    *,
    content: bool = True,
) -> tuple[str, tuple[Retired, ...]]:
    """Compare a product's files with its record.

    Files are deleted after a `retired` record names them. So these records are read again before a file
    counts as missing.

    Args:
        ledger: The store.
        instance: The stage instance.
        done: Record of its product.
        retired: The `retired` records that were read before.
        content: Also compare digests, not only sizes.

    Returns:
        (the damage or "", the `retired` records that explain absent files).
    """
    prefix = layout.output(instance, done.attempt)
    problem = _compare(ledger, prefix, remaining_files(done.files, retired), content=content)
    if problem is not None:
        retired = ledger.retired(instance, done.generation)
        problem = _compare(ledger, prefix, remaining_files(done.files, retired), content=content)
    return problem or "", retired


def _compare(ledger: Ledger, prefix: str, files: tuple[File, ...], *, content: bool) -> str | None:
    """Return the first difference between files and their record; None when there is none."""
    objects = ledger.objects
    if not files:
        return None
    problem = damage_by_size(ledger.sizes(prefix, files), files)
    if problem is not None or not content:
        return problem
    folder = objects.fetch(prefix, files, content=False)
    if damage(folder, files) is None:
        return None
    # If only the cached copy is damaged, this fetches it again.
    return damage(objects.fetch(prefix, files), files)
