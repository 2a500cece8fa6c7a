"""Retention (rule 7): files that nobody needs any more are recorded as retired, durably, and then deleted.

It deletes payload only, of stages that are done, and knows no more of the files than what the stages that
took them said. Every step may be repeated: whoever comes next finishes what another began.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from orchestrator import provenance
from orchestrator.core.records import Done, Retired
from orchestrator.core.retention import let_go, without
from orchestrator.core.settings import Policy
from orchestrator.core.state import Attempt
from orchestrator.core.sweep import Node, Sweep
from orchestrator.store import layout
from orchestrator.store.evidence import Snapshot
from orchestrator.store.ledger import Ledger, new_nonce


def retain(
    ledger: Ledger,
    sweep: Sweep,
    policy: Policy,
    *,
    by: str,
    sources: Collection[str] | None = None,
    trusted: set[tuple[str, int]] | None = None,
) -> list[Retired]:
    """Retires what the policy lets go of products whose takers in the sweep are all done.

    Deletions that another recorded and did not finish are finished, whatever the policy.

    Args:
        ledger: the store.
        sweep: whose stages may still need a product; another sweep that does is told by its own evidence.
        policy: what is kept.
        by: who asks, for the record.
        sources: digests of the products to look at; None for all that are taken by a stage.
        trusted: products whose files were compared before.

    Returns:
        What this call was the first to retire.
    """
    takers: dict[str, list[Node]] = {}
    for node in sweep.nodes.values():
        for taken in node.inputs:
            takers.setdefault(taken.digest, []).append(node)
    snapshot = Snapshot(ledger, sweep.nodes.values(), count_attempts=False, trusted=trusted)
    news = []
    for digest in takers if sources is None else sources:
        source, evidence = sweep.nodes[digest], snapshot.evidence(digest)
        if evidence.done is None:
            continue
        retired = evidence.retired
        decided = _decide(snapshot, source, evidence.done, takers[digest], policy, retired=retired, by=by)
        if decided is not None:
            if ledger.retire(source, decided):
                news.append(decided)
            retired = ledger.retired(source, evidence.generation)  # what stands, whoever wrote it
        for record in retired:
            _delete(ledger, source, record, keep_checkpoints=policy.keep_checkpoints)
    return news


def _decide(
    snapshot: Snapshot,
    source: Node,
    product: Done,
    takers: list[Node],
    policy: Policy,
    *,
    retired: tuple[Retired, ...],
    by: str,
) -> Retired | None:
    """Returns the record to make, None while a taker is not done or wants to keep what there is."""
    if policy.retention == "all" or any(record.policy == policy.retention for record in retired):
        return None
    made: list[Done] = []
    for taker in takers:
        done = snapshot.evidence(taker.digest).done
        if done is None:
            return None
        made.append(done)
    files = without(let_go(product, made, policy.retention), retired)
    if not files:
        return None
    names = ", ".join(dict.fromkeys(taker.name for taker in takers))
    return Retired(
        nonce=new_nonce(),
        generation=product.generation,
        attempt=product.attempt,
        policy=policy.retention,
        files=files,
        why=f"all that takes it is done ({names}) and needs these files no more",
        by=by,
        at=provenance.now(),
    )


def _delete(ledger: Ledger, source: Node, retired: Retired, *, keep_checkpoints: bool) -> None:
    """Deletes what a record names, in its order: when the last file is gone, so are the others."""
    if not retired.files:
        return
    output = layout.output(source.stage, source.digest, retired.attempt)
    folder, _, name = f"{output}/{retired.files[-1].path}".rpartition("/")
    if name not in ledger.objects.list(folder).files:
        return
    if not keep_checkpoints:
        drop_work(ledger, source, ledger.attempts(source), generation=retired.generation)
    for file in retired.files:
        ledger.objects.delete(f"{output}/{file.path}")


def drop_work(ledger: Ledger, node: Node, attempts: Iterable[Attempt], *, generation: int) -> None:
    """Deletes what attempts of a finished stage left that is no product: checkpoints, scratch, work, half
    outputs.

    These may be hard links to the product's files: while they stay, deleting those would free nothing.

    Args:
        ledger: the store.
        node: the stage, which is done.
        attempts: of the stage; those that make a later generation are left alone.
        generation: of its product.
    """
    named = set()
    for earlier in range(1, generation + 1):
        done, problem = ledger.product(node, earlier)
        if problem:
            return  # unreadable: any output may be what it names
        named.update([done.attempt] if done else [])
    for attempt in attempts:
        if attempt.claim is None or attempt.claim.generation > generation:
            continue
        key = layout.payload(node.stage, node.digest, attempt.number)
        output = () if attempt.number in named else (layout.OUTPUT,)
        for name in (layout.CHECKPOINTS, layout.SCRATCH, layout.WORK, *output):
            ledger.objects.delete(f"{key}/{name}")
