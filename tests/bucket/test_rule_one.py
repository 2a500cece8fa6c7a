"""Rule 1 over a real S3 server: one winner, whatever becomes of the replies, and it knows."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from orchestrator.core.records import Claim
from orchestrator.core.sweep import Input
from orchestrator.errors import InfrastructureError
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from tests.bucket.buckets import Bucket
from tests.bucket.server import FAULTS
from tests.store.builders import claim, instance_of, sweep_of

NODE = instance_of(sweep_of(1))
KEY = layout.attempt(NODE, 1, layout.CLAIM)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_writer_whose_create_went_wrong_learns_that_it_won(bucket: Bucket, fault: str) -> None:
    ledger, mine = bucket.ledger(), claim()
    bucket.proxy.fail(fault, "PUT", "claim.json")
    assert ledger.claim(NODE, 1, mine)
    assert bucket.ledger("other").read(KEY, Claim) == (mine, "")
    # the library under it must not try again by itself: then a refusal would say nothing
    puts = [path for method, path in bucket.proxy.seen if method == "PUT" and "claim.json" in path]
    assert len(puts) == (1 if fault == "lost reply" else 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_writer_whose_create_went_wrong_learns_that_another_won(bucket: Bucket, fault: str) -> None:
    theirs = claim()
    assert bucket.ledger("other").claim(NODE, 1, theirs)
    bucket.proxy.fail(fault, "PUT", "claim.json")
    assert not bucket.ledger().claim(NODE, 1, claim())
    assert bucket.ledger().read(KEY, Claim) == (theirs, "")


def test_a_server_that_is_gone_is_neither_won_nor_lost_nor_absent(bucket: Bucket) -> None:
    ledger = bucket.ledger()
    bucket.proxy.is_down = True
    with pytest.raises(InfrastructureError, match=r"cannot (read|write)"):
        ledger.claim(NODE, 1, claim())
    with pytest.raises(InfrastructureError, match="cannot read"):
        ledger.read(KEY, Claim)
    bucket.proxy.is_down = False
    assert ledger.read(KEY, Claim) == (None, "")
    assert ledger.claim(NODE, 1, claim())


@pytest.mark.parametrize(
    ("num_racers", "num_claims"), [(3, 40), pytest.param(6, 200, marks=pytest.mark.long)]
)
def test_of_many_racing_creators_each_claim_has_one_winner_though_replies_are_lost(
    bucket: Bucket, num_racers: int, num_claims: int
) -> None:
    """Real processes, and every kind of trouble with a fifth of the claims."""
    for number in range(0, num_claims, 5):
        digest = f"{number:064x}"
        for fault in FAULTS[number // 5 % 4 :]:
            bucket.proxy.fail(fault, "PUT", digest)
    command = [sys.executable, "-m", "tests.store.stores", bucket.url]
    racers = [
        subprocess.Popen(
            [*command, str(n), str(num_claims)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(num_racers)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json.loads(racer.communicate(timeout=240)[0]) for racer in racers]
    winners = {number: nonce for wins in won for number, nonce in wins}
    assert sum(map(len, won)) == num_claims and sorted(winners) == list(range(num_claims))
    keys = {n: layout.attempt(Input("race", "", f"{n:064x}"), 1, layout.CLAIM) for n in winners}
    found = bucket.open().get_many(keys.values())
    for number, nonce in winners.items():
        assert msgspec.json.decode(found[keys[number]] or b"", type=Claim).nonce == nonce


def test_a_server_that_ignores_the_condition_is_refused_when_a_store_is_made(bucket: Bucket) -> None:
    bucket.proxy.ignores_conditions = True
    with pytest.raises(InfrastructureError, match="second writer"):
        open_ledger(bucket.url, create=True)


def test_a_server_that_ignores_the_condition_is_refused_later_too(bucket: Bucket) -> None:
    """The store was made over a good server; another took its place, or leads to it from this node."""
    ledger = open_ledger(bucket.url, create=True)
    mark = ledger.objects.get(layout.STORE)
    bucket.proxy.ignores_conditions = True
    with pytest.raises(InfrastructureError, match="second writer"):
        open_ledger(bucket.url, create=True)
    with pytest.raises(
        InfrastructureError, match="second writer"
    ):  # as each worker does, before its first claim
        open_ledger(bucket.url).prove_writable()
    bucket.proxy.ignores_conditions = False
    assert ledger.objects.get(layout.STORE) == mark  # the proof did no harm
    assert open_ledger(bucket.url, create=True).objects.list("").files == (layout.STORE,)
