"""What workers, users and retention write in a store, at random, and what a view shows of it."""

from __future__ import annotations

import random
from typing import Any

from orchestrator.api.state import SweepState
from orchestrator.core.records import Heartbeat
from orchestrator.core.sweep import StageInstance
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from tests.store import builders


def facts_of(view: SweepState) -> dict[str, Any]:
    """What a view shows of a sweep."""
    cells = {cell: (str(s.state), s.reason, s.attempts) for cell, s in view.cells.items()}
    stages = {digest: view.reader.evidence(digest) for digest in view.sweep.stages}
    return {
        "cells": cells,
        "done": {digest: found.done for digest, found in stages.items()},
        "retired": {digest: found.retired for digest, found in stages.items()},
        "attempts": {digest: found.attempts for digest, found in stages.items()},
        "requests": [request.number for request in view.requests],
    }


def act(ledger: Ledger, instance: StageInstance, rng: random.Random) -> None:
    """Write the next record of some stage, as a worker, a user or retention would."""
    numbers = ledger.numbers(instance)
    last = ledger.attempt(instance, numbers[-1]) if numbers else None
    done = ledger.generations(layout.done_index(instance.stage)).get(instance.digest, set())
    void = ledger.generations(layout.void_index(instance.stage)).get(instance.digest, set())
    generation = max(done | void, default=0)
    if last is None or last.end is not None:
        if generation and generation not in void and rng.random() < 0.8:
            if rng.random() < 0.5:
                ledger.void(instance, builders.void(generation, "discarded"))
                return
            product = ledger.product(instance, generation)[0]
            assert product is not None
            ledger.retire(instance, builders.retired(product, generation))
            return
        claim = builders.claim(generation=generation + (generation in void or not generation))
        ledger.claim(instance, (numbers or [0])[-1] + 1, claim)
        return
    assert last.claim is not None
    what = rng.choice(["beat", "done", "done and end", "failed", "failed but done", "released"])
    if what == "beat":
        ledger.put(
            instance, last.number, layout.HEARTBEAT, Heartbeat(counter=rng.randrange(99), phase="work")
        )
    if "done" in what:
        builders.make_product(ledger, instance, attempt=last.number, generation=last.claim.generation)
        ledger.objects.upload(layout.output(instance, last.number))
    if what in ("done and end", "failed", "released", "failed but done"):
        outcome = {"done and end": "succeeded", "released": "released"}.get(what, "failed")
        ledger.end(instance, last.number, builders.end(outcome, why="stopped" if what == "released" else ""))
