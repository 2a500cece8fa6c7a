"""Rule 1: create can lie. Exactly one of several writers wins, whatever the place answers, and knows it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.records import Claim
from orchestrator.core.sweep import Input
from orchestrator.errors import InfrastructureError
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import PosixStore
from orchestrator.store.opening import make_store
from tests.store.builders import claim, instance_of, ledger_at, sweep_of
from tests.store.stores import Trouble, TroubledStore, no_answer

NODE = instance_of(sweep_of(1))
KEY = layout.attempt(NODE, 1, layout.CLAIM)


def once(when: str, operation: str) -> Trouble:
    """No answer the first time that an operation is before or after its effect."""
    left = [1]

    def trouble(*now: str) -> None:
        if now[:2] == (when, operation) and left:
            left.pop()
            no_answer()

    return trouble


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_whose_reply_was_lost_learns_that_it_won(store: Path, when: str) -> None:
    ledger = Ledger(TroubledStore(store, once(when, "create")))
    mine = claim()
    assert ledger.claim(NODE, 1, mine)
    assert ledger.read(KEY, Claim) == (mine, "")


def test_a_writer_whose_own_retry_was_refused_learns_that_it_won(store: Path) -> None:
    class Retrying(PosixStore):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return super().create(key, data)

    assert Ledger(Retrying(store)).claim(NODE, 1, claim())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_without_a_reply_learns_that_another_won(store: Path, when: str) -> None:
    theirs = claim()
    assert ledger_at(store).claim(NODE, 1, theirs)
    ledger = Ledger(TroubledStore(store, once(when, "create")))
    assert not ledger.claim(NODE, 1, claim())
    assert ledger.read(KEY, Claim) == (theirs, "")


def test_a_writer_that_is_refused_though_nothing_is_there_tries_again(store: Path) -> None:
    class Refusing(PosixStore):
        refusals = 2

        def create(self, key: str, data: bytes) -> bool:
            self.refusals -= 1
            return self.refusals < 0 and super().create(key, data)

    assert Ledger(Refusing(store)).claim(NODE, 1, claim())


def test_a_place_that_never_answers_is_an_error_and_neither_won_nor_lost(store: Path) -> None:
    with pytest.raises(InfrastructureError, match="Input/output error"):
        Ledger(TroubledStore(store, no_answer)).claim(NODE, 1, claim())


def test_a_read_that_errs_is_not_absent(store: Path) -> None:
    ledger = Ledger(TroubledStore(store, no_answer))
    with pytest.raises(InfrastructureError, match="Input/output error"):
        ledger.read(KEY, Claim)
    assert ledger_at(store).read(KEY, Claim) == (None, "")


def test_an_unreadable_record_is_neither_absent_nor_ours(store: Path) -> None:
    ledger = ledger_at(store)
    ledger.objects.create(KEY, b'{"nonce": "torn')
    assert not ledger.claim(NODE, 1, claim())
    found, problem = ledger.read(KEY, Claim)
    assert found is None and KEY in problem


def test_a_torn_temporary_file_is_never_listed_or_read(store: Path) -> None:
    ledger = ledger_at(store)
    ledger.claim(NODE, 1, claim())
    folder = (store / KEY).parent
    (folder / ".tmp-torn").write_text("{")
    assert ledger.objects.list(KEY.rpartition("/")[0]).files == (layout.CLAIM,)


def test_a_place_where_two_can_create_the_same_key_is_refused_as_a_store(store: Path) -> None:
    class Careless(PosixStore):
        def create(self, key: str, data: bytes) -> bool:
            self.put(key, data)
            return True

    with pytest.raises(InfrastructureError, match="second writer"):
        make_store(Careless(store), layout.STORE, "")


LIES = st.lists(st.sampled_from(["", "lost before", "lost after", "refused after"]), max_size=2)


class Liar(PosixStore):
    """Tells these lies, then the truth."""

    def __init__(self, root: Path, lies: list[str]) -> None:
        super().__init__(root)
        self._lies = list(lies)

    def create(self, key: str, data: bytes) -> bool:
        lie = self._lies.pop(0) if self._lies else ""
        if lie == "lost before":
            no_answer()
        created = super().create(key, data)
        if lie == "lost after":
            no_answer()
        return created and lie != "refused after"


@settings(max_examples=25, deadline=None)
@given(st.lists(LIES, min_size=2, max_size=3))
def test_whatever_lies_each_writer_is_told_exactly_one_won_and_its_record_stands(
    lies: list[list[str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        claims = [claim() for _ in lies]
        won = [
            Ledger(Liar(Path(folder), told)).claim(NODE, 1, mine)
            for told, mine in zip(lies, claims, strict=True)
        ]
        assert won.count(True) == 1
        assert ledger_at(Path(folder)).read(KEY, Claim)[0] == claims[won.index(True)]


@pytest.mark.parametrize("num_racers", [2, pytest.param(8, marks=pytest.mark.long)])
def test_of_a_thousand_claims_each_has_exactly_one_winner(store: Path, num_racers: int) -> None:
    """Real processes that start together and go through the same claims in the same order."""
    command = [sys.executable, "-m", "tests.store.stores", str(store)]
    racers = [
        subprocess.Popen(
            [*command, str(number), "1000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(num_racers)
    ]
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = [json.loads(racer.communicate(timeout=240)[0]) for racer in racers]
    winners = {number: nonce for wins in won for number, nonce in wins}
    assert sum(map(len, won)) == 1000 and sorted(winners) == list(range(1000))
    for number, nonce in winners.items():
        data = (store / layout.attempt(Input("race", "", f"{number:064x}"), 1, layout.CLAIM)).read_bytes()
        assert msgspec.json.decode(data, type=Claim).nonce == nonce
    assert not list(store.rglob(".tmp-*"))
