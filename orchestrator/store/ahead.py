"""Reading ahead: what a snapshot of many stages needs of a bucket, in a few round trips."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import Node
from orchestrator.store import layout
from orchestrator.store.ledger import Known, Ledger
from orchestrator.store.objects import Listing


def read_ahead(
    ledger: Ledger, nodes: Sequence[Node], *, counted: bool, sized: bool, trusted: Collection[object]
) -> Ledger:
    """Returns a ledger that knows the indexes and records of these stages, as of now.

    Args:
        ledger: the store.
        nodes: the stage instances.
        counted: also list the attempts of stages that are done.
        sized: also read the sizes of the products' files.
        trusted: (digest, generation) of products whose sizes are not wanted.
    """
    objects, stages = ledger.objects, sorted({node.stage for node in nodes})
    prefixes = [index(stage) for stage in stages for index in (layout.done_index, layout.void_index)]
    prefixes += [layout.retired_index(stage, policy) for stage in stages for policy in RETIRING]
    above = [layout.stage_records(stage) for stage in stages]
    listings = objects.list_many([*prefixes, *(() if counted else above)])
    for prefix, paths in objects.trees(above if counted else ()).items():
        listings |= _levels(prefix, paths)
    known = ledger.knowing(Known({}, listings))

    products = _products(known, nodes)
    begun = [
        node
        for node in nodes
        if node.digest not in products and node.digest in listings[layout.stage_records(node.stage)].folders
    ]
    places = [layout.attempts(node.stage, node.digest) for node in begun]
    listings |= objects.list_many(place for place in places if place not in listings)
    keys = [
        layout.attempt(node.stage, node.digest, number, name)
        for node in begun
        for number in known.numbers(node)
        for name in layout.RECORDS
    ]
    keys += [
        layout.done(node.stage, node.digest, products[node.digest])
        for node in nodes
        if node.digest in products and not ledger.has_read(node, products[node.digest])
    ]
    records = objects.get_many(keys)
    known = ledger.knowing(Known(records, listings))

    wanted = [n for n in nodes if sized and (n.digest, products.get(n.digest)) not in trusted]
    made = [(n, known.product(n, products[n.digest])[0]) for n in wanted if n.digest in products]
    outputs = [layout.output(node.stage, node.digest, done.attempt) for node, done in made if done]
    return ledger.knowing(Known(records, listings, objects.trees(outputs)))


def _products(known: Ledger, nodes: Sequence[Node]) -> dict[str, int]:
    """Returns digest to generation of what may be done: what is indexed and not void."""
    stages = {node.stage for node in nodes}
    done = {stage: known.generations(layout.done_index(stage)) for stage in stages}
    void = {stage: known.generations(layout.void_index(stage)) for stage in stages}
    found = {}
    for node in nodes:
        generations = done[node.stage].get(node.digest)
        if generations and max(generations) not in void[node.stage].get(node.digest, set()):
            found[node.digest] = max(generations)
    return found


def _levels(prefix: str, paths: Collection[str]) -> dict[str, Listing]:
    """Returns the listing of each level under a prefix, from all paths below it."""
    files: dict[str, set[str]] = {prefix: set()}
    folders: dict[str, set[str]] = {prefix: set()}
    for path in paths:
        *above, name = path.split("/")
        place = prefix
        for part in above:
            folders.setdefault(place, set()).add(part)
            place = f"{place}/{part}"
            files.setdefault(place, set())
        files[place].add(name)
    return {
        place: Listing(tuple(sorted(names)), tuple(sorted(folders.get(place, ()))))
        for place, names in files.items()
    }
