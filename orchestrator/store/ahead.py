"""Reading ahead: what a snapshot of many stages needs of a bucket, in a few round trips."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from orchestrator.core.records import Done
from orchestrator.core.settings import RETIRING
from orchestrator.core.sweep import Node
from orchestrator.store import layout
from orchestrator.store.ledger import Known, Ledger
from orchestrator.store.objects import Listing


def read_ahead(ledger: Ledger, nodes: Sequence[Node], *, sized: bool, trusted: Collection[object]) -> Ledger:
    """Returns a ledger that knows the indexes and records of these stages, as of now.

    Args:
        ledger: the store.
        nodes: the stage instances.
        sized: also read the sizes of the products' files.
        trusted: (digest, generation) of products whose sizes are not wanted.
    """
    stages = sorted({node.stage for node in nodes})
    indexes = [index(stage) for stage in stages for index in (layout.done_index, layout.void_index)]
    indexes += [layout.retired_index(stage, policy) for stage in stages for policy in RETIRING]
    listings = ledger.objects.list_many(indexes)
    trees = ledger.objects.trees(layout.stage_records(stage) for stage in stages)
    for prefix, paths in trees.items():
        listings |= _levels(prefix, paths)
    known = ledger.knowing(Known({}, listings))
    existing = {f"{prefix}/{path}" for prefix, paths in trees.items() for path in paths}

    products = {}
    for stage in stages:
        done, void = (known.generations(index(stage)) for index in (layout.done_index, layout.void_index))
        for node in nodes:
            generations = done.get(node.digest, set())
            if node.stage == stage and generations and max(generations) not in void.get(node.digest, set()):
                products[node.digest] = max(generations)
    keys = [
        layout.done(node.stage, node.digest, products[node.digest])
        for node in nodes
        if node.digest in products and not ledger.has_read(node, products[node.digest])
    ]
    attempts = [
        layout.attempt(node.stage, node.digest, number, name)
        for node in nodes
        if node.digest not in products
        for number in known.numbers(node)
        for name in layout.RECORDS
    ]
    records: dict[str, bytes | None] = {key: None for key in attempts if key not in existing}
    records |= ledger.objects.get_many([*keys, *(key for key in attempts if key in existing)])

    outputs = []
    for node in nodes if sized else ():
        generation = products.get(node.digest, 0)
        if generation and (node.digest, generation) not in trusted:
            key = layout.done(node.stage, node.digest, generation)
            attempt = ledger.product(node, generation)[0] if key not in records else _done(records[key])
            outputs += [layout.output(node.stage, node.digest, attempt.attempt)] if attempt else []
    return ledger.knowing(Known(records, listings, ledger.objects.trees(outputs)))


def _done(data: bytes | None) -> Done | None:
    try:
        return msgspec.json.decode(data or b"", type=Done)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


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
