"""Reading a bucket with an index: what never changes is read once on this machine, the rest at each look.

A second look lists `void/` and `retired/`, a sweep's requests and submissions, and the records of each kind
of stage of which an instance has no product. Everything else follows:

- A record that is created never changes: claims, ends, products, voids, retirements, requests, revisions.
- A product counts until a void names it, and the voids are listed.
- Each product was made by an attempt. So where the attempts of a stage are listed, its new products are
  those of attempts without an `end`, or with an `end` that no look has settled. They are read by their keys.

What a look found is written in one transaction after it, so an attempt is only settled together with its
product.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import Self

import msgspec

from orchestrator import formats
from orchestrator.core.evidence import remaining_files
from orchestrator.core.records import Claim, Done, StoreMark
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import StageInstance
from orchestrator.manifest import damage_by_size
from orchestrator.store import layout
from orchestrator.store.access import Prefetched
from orchestrator.store.bucket import RemoteStore
from orchestrator.store.index import Index, index_folder, name_of
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import Listing

_FINAL = re.compile(
    r"((done|void|retired)/.+"
    r"|records/.+/\d+/(claim|end)"
    r"|sweeps/[^/]+/(\d+|requests/\d+|submissions/\d+|submissions/\d+/job|submissions/\d+/closings/\d+))\.json"
)
"""Keys of records that are created and never replaced. `start.json` is final once its attempt has ended."""

MANY = 20
"""Number of products of a kind from which on one listing serves all of them."""

_JOURNAL = re.compile(r"(sweeps/[^/]+)/(requests|submissions)(/.*)?")
_NOTHING = Listing((), ())
CHECKED, ATTEMPTS, LISTED, SETTLED = "checked", "attempts", "listed", "settled"
"""Kinds of facts in the index: products whose files were compared, as ``<digest>.<g>``; the number of
attempts of a digest; stages whose index of products was read once; ended attempts whose product was looked
for, as ``<digest>.<n>``.
"""


def indexed(ledger: Ledger) -> Ledger:
    """Return a ledger that reads a bucket with the help of an index; the same one for a folder."""
    objects = ledger.objects
    if not isinstance(objects, RemoteStore):
        return ledger
    mark, _ = ledger.read(layout.STORE, StoreMark)
    if mark is None:
        return ledger
    path = None
    with contextlib.suppress(OSError):
        # A copy of a store has the nonce of the original, so its address counts too, and the server's.
        name = name_of(mark.nonce, mark.format, objects.url, objects.cache.root.name)
        path = index_folder() / f"{name}.sqlite"
    return IndexedLedger(IndexedBucket.over(objects, Index(path)), store_format=mark.format)


class IndexedBucket(RemoteStore):
    """A bucket for readers: what cannot have changed is not read again, and a sweep's journal is listed once.

    Attributes:
        index: what was read before.
    """

    index: Index
    _journals: dict[str, Listing]

    @classmethod
    def over(cls, objects: RemoteStore, index: Index) -> Self:
        """Return a new look at a bucket, through the same connection."""
        found = cls(objects.url, home=objects.home, connection=objects.connection)
        found.index, found._journals = index, {}
        return found

    def get(self, key: str) -> bytes | None:
        """Read an object, unless it is known and cannot have changed."""
        return self.get_many([key])[key]

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        """Read objects, those that are not known in one bulk request."""
        asked = list(dict.fromkeys(keys))
        found: dict[str, bytes | None] = {**self.index.get(key for key in asked if _FINAL.fullmatch(key))}
        read = super().get_many(key for key in asked if key not in found)
        self.index.add(_final(read))
        return found | read

    def create(self, key: str, data: bytes) -> bool:
        """Create an object. What comes after it lists the journal again: a number may have been taken."""
        self._journals.clear()
        return super().create(key, data)

    def list(self, prefix: str) -> Listing:
        """List one level; of a sweep's requests and submissions, as of the first listing."""
        journal = _JOURNAL.fullmatch(prefix)
        if journal is None:
            return super().list(prefix)
        if f"{journal[1]}/requests" not in self._journals:
            self._list_journal(journal[1])
        return self._journals.get(prefix, _NOTHING)

    def _list_journal(self, sweep: str) -> None:
        """List the requests and the submissions of a sweep, which are neighbours, with one request."""
        paths: list[str] = self.connection.call("span", sweep, "requests", "submissions")
        for part in ("requests", "submissions"):
            mine = [path.removeprefix(f"{part}/") for path in paths if path.startswith(f"{part}/")]
            self._journals |= layout.levels(f"{sweep}/{part}", mine)


class IndexedLedger(Ledger):
    """The records of a bucket, for readers; see `renewed`."""

    objects: IndexedBucket

    def renewed(self) -> Ledger:
        """Return a ledger that looks again at all that can have changed."""
        bucket = IndexedBucket.over(self.objects, self.objects.index)
        return IndexedLedger(bucket, store_format=self._store_format)

    def has_revision(self, sweep: str, number: int) -> bool:
        """Return whether a revision was sealed. None is ever deleted, so it is read rather than listed."""
        return self.objects.get(layout.revision(sweep, number)) is not None

    def look_up(
        self,
        instances: Iterable[StageInstance],
        formers: Iterable[StageInstance],
        *,
        trusted: set[tuple[str, int]],
        sized: bool,
    ) -> Ledger:
        """Read what the evidence about some stages needs, in a few bulk requests.

        Args:
            instances: stage instances.
            formers: those of earlier versions of the same stages; they count while a stage is not done.
            trusted: receives (digest, generation) of products whose files were compared, now or earlier.
            sized: whether to compare the files of products that were not compared before.

        Returns:
            A ledger that holds the records and listings, as of now.
        """
        look = _Look(self.objects, list(instances), list(formers))
        look.read_products()
        look.read_attempts()
        look.read_retirements()
        ledger = look.finish(self)
        checked = set(self.objects.index.facts(CHECKED))
        if sized:
            now = look.compare(ledger, checked)
            self.objects.index.add({}, {(CHECKED, name): 1 for name in now})
            checked |= now
        for name in checked:
            digest, _, generation = name.rpartition(".")
            trusted.add((digest, int(generation)))
        return ledger


class _Look:
    """One look at the evidence about stages.

    Args:
        bucket: the store.
        instances: stage instances.
        formers: those of earlier versions.
    """

    def __init__(
        self, bucket: IndexedBucket, instances: list[StageInstance], formers: list[StageInstance]
    ) -> None:
        self._bucket, self._instances, self._formers = bucket, instances, formers
        self._kinds = sorted({instance.stage for instance in instances})
        self._listings: dict[str, Listing] = {}
        self._records: dict[str, bytes | None] = {}
        self._facts: dict[tuple[str, str], int] = {}
        self._done: dict[str, dict[str, set[int]]] = {kind: {} for kind in self._kinds}
        self._list_whole("void", "retired")
        self._void = {kind: _generations(self._at(layout.void_index(kind)).files) for kind in self._kinds}
        for kind in self._kinds:
            self._take(bucket.index.below(f"{layout.done_index(kind)}/"))
        # Kinds of stages of which an instance has no product, as far as is known.
        self._open = sorted({instance.stage for instance in instances if not self.product(instance)})
        self._list_whole(*map(layout.stage_records, self._open))

    def _list_whole(self, *prefixes: str) -> None:
        for prefix, paths in self._bucket.trees(prefixes).items():
            self._listings |= layout.levels(prefix, paths)

    def _at(self, prefix: str) -> Listing:
        return self._listings.get(prefix, _NOTHING)

    def _take(self, found: Mapping[str, bytes | None]) -> None:
        """Take records into this look, and products into its index of products."""
        self._records |= found
        for key, data in found.items():
            _, kind, *_, name = key.split("/")
            if data is not None and key.startswith("done/"):
                for digest, generations in _generations([name]).items():
                    self._done[kind].setdefault(digest, set()).update(generations)

    def product(self, of: layout.Named) -> int:
        """Return the generation of a stage's product, 0 if it has none."""
        highest = max(self._done[of.stage].get(of.digest, ()), default=0)
        return 0 if highest in self._void[of.stage].get(of.digest, ()) else highest

    def read_products(self) -> None:
        """Read the products of kinds that this machine has never looked at, by listing them."""
        listed = self._bucket.index.facts(LISTED)
        fresh = [layout.done_index(kind) for kind in self._open if kind not in listed]
        mine = {instance.digest for instance in chain(self._instances, self._formers)}
        keys = [
            f"{index}/{name}"
            for index, found in self._bucket.list_many(fresh).items()
            for name in found.files
            if name.partition(".")[0] in mine
        ]
        self._take(self._bucket.get_many(keys))
        self._facts |= {(LISTED, kind): 1 for kind in self._open}

    def read_attempts(self) -> None:
        """Read the attempts of stages without a product, and the products that they have made meanwhile."""
        settled, claims = self._bucket.index.facts(SETTLED), {}
        keys, starts = [], []
        for instance in chain(self._instances, self._formers):
            place = layout.attempts(instance)
            for number in self._at(place).folders if not self.product(instance) else ():
                here = {name: layout.attempt(instance, int(number), name) for name in layout.RECORDS}
                there = set(self._at(f"{place}/{number}").files)
                self._records |= {key: None for name, key in here.items() if name not in there}
                if layout.END in there:
                    there.discard(layout.HEARTBEAT)
                    starts += [here[layout.START]] if layout.START in there else []
                keys += [here[name] for name in layout.RECORDS if name in there]
                if layout.CLAIM in there and f"{instance.digest}.{number}" not in settled:
                    claims[here[layout.CLAIM]] = (instance, int(number), layout.END in there)
        # An attempt that has ended writes its start no more.
        known = self._bucket.index.get(starts)
        self._take(known)
        self._take(self._bucket.get_many(key for key in keys if key not in known))
        # Read after the ends: an attempt that was found ended has made its product, or never will.
        made = set()
        for key, (instance, at, has_ended) in claims.items():
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                generation = formats.decode(self._records.get(key) or b"", Claim).generation
                made.add(layout.done(instance, generation))
                if has_ended:
                    self._facts[SETTLED, f"{instance.digest}.{at}"] = 1
        self._take(RemoteStore.get_many(self._bucket, made - self._records.keys()))
        self._starts = {key: self._records[key] for key in starts}

    def read_retirements(self) -> None:
        """Read which files of the stages were deleted on purpose."""
        mine = {instance.digest for instance in chain(self._instances, self._formers)}
        listed: dict[str, list[str]] = {}
        for kind in self._kinds:
            for policy in self._at(f"retired/{kind}").folders:
                for name in self._at(layout.retired_index(kind, policy)).files:
                    if name.partition(".")[0] in mine:
                        listed.setdefault(f"{kind}/{name}", []).append(policy)
        for path, policies in listed.items():
            kind, name = path.split("/")
            self._records |= {f"{layout.retired_index(kind, policy)}/{name}": None for policy in RETIRING}
            self._take(
                self._bucket.get_many(f"{layout.retired_index(kind, each)}/{name}" for each in policies)
            )
        self._retired = listed.keys()

    def finish(self, ledger: Ledger) -> Ledger:
        """Remember what is final, and return a ledger that holds this look."""
        numbers = self._bucket.index.facts(ATTEMPTS)
        for kind in self._kinds:
            names = [f"{digest}.{g}.json" for digest, each in self._done[kind].items() for g in each]
            self._listings[layout.done_index(kind)] = Listing(tuple(sorted(names)), ())
            for index in (layout.void_index(kind), *(layout.retired_index(kind, each) for each in RETIRING)):
                self._listings.setdefault(index, _NOTHING)
            if kind not in self._open:
                self._listings[layout.stage_records(kind)] = _NOTHING
        for instance in self._instances:
            place = layout.attempts(instance)
            if instance.stage not in self._open:
                every = range(1, numbers.get(instance.digest, 0) + 1)
                self._listings[place] = Listing((), tuple(map(str, every)))
            elif self.product(instance):
                number = max((int(name) for name in self._at(place).folders if name.isdigit()), default=0)
                if numbers.get(instance.digest) != number:
                    self._facts[ATTEMPTS, instance.digest] = number
        read = {key: data for key, data in self._starts.items() if data is not None}
        self._bucket.index.add(_final(self._records) | read, self._facts)
        return ledger.knowing(Prefetched(self._records, self._listings))

    def compare(self, ledger: Ledger, checked: Collection[str]) -> set[str]:
        """Compare file sizes of products that were not compared before; return those that are whole."""
        made: list[tuple[StageInstance, Done]] = []
        for instance in chain(self._instances, self._formers):
            generation = self.product(instance)
            if generation and f"{instance.digest}.{generation}" not in checked:
                done, _ = ledger.product(instance, generation)
                made += [(instance, done)] if done is not None else []
        trees = self._sizes(made)
        whole = set()
        for instance, done in made:
            is_retired = f"{instance.stage}/{instance.digest}.{done.generation}.json" in self._retired
            retired = ledger.retired(instance, done.generation) if is_retired else ()
            sizes = trees[layout.output(instance, done.attempt)]
            if damage_by_size(sizes, remaining_files(done.files, retired)) is None:
                whole.add(f"{instance.digest}.{done.generation}")
        return whole

    def _sizes(self, made: list[tuple[StageInstance, Done]]) -> dict[str, dict[str, int]]:
        """Return the sizes of the files in the output folder of each product.

        Of a kind with many products all payload is listed: a listing has a thousand names, and few products
        have many files.
        """
        found: dict[str, dict[str, int]] = {layout.output(each, done.attempt): {} for each, done in made}
        num_made = Counter(instance.stage for instance, _ in made)
        few = [layout.output(each, done.attempt) for each, done in made if num_made[each.stage] < MANY]
        found |= self._bucket.trees(few)
        many = [f"payload/{kind}" for kind, number in num_made.items() if number >= MANY]
        for place, sizes in self._bucket.trees(many).items():
            for path, size in sizes.items():
                attempt, folder, name = path.partition(f"/{layout.OUTPUT}/")
                if folder and (output := f"{place}/{attempt}/{layout.OUTPUT}") in found:
                    found[output][name] = size
        return found


def _final(found: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return the records that exist and cannot change."""
    return {key: data for key, data in found.items() if data is not None and _FINAL.fullmatch(key)}


def _generations(names: Iterable[str]) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name in names:
        if (parsed := layout.parse_generation(name)) is not None:
            found.setdefault(parsed[0], set()).add(parsed[1])
    return found
