"""Rule 10: reading never changes anything, whatever state the store is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.objects import PosixStore
from tests.conftest import Sweep
from tests.store.builders import claim as claim_of
from tests.store.builders import instance_of, ledger_at, make_product, owner, sweep_of

COUNT = """
description: counts
expect_cells: 4
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0, fail: null}}
axes:
  seed: {a: {seed: 1}, b: {seed: 2}, c: {seed: 3}, bad: {count.fail: {how: data, step: 2, attempts: 9}}}
stages: [count]
"""


def photograph(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every path with its modification time, inode and bytes."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            path.stat().st_ino,
            path.read_bytes() if path.is_file() else b"",
        )
        for path in sorted(folder.rglob("*"))
    }


def harm(store: Path) -> None:
    """Done, failed, damaged and lost cells, and one that another machine runs."""
    damaged, lost, remote = sorted((store / "done/count").iterdir())
    (store / "payload/count" / damaged.name[:64] / "1/output/count.txt").unlink()
    for index, gone in enumerate((lost, remote)):
        records = store / "records/count" / gone.name[:64] / "1"
        gone.unlink()
        (records / "end.json").unlink()
        if index:
            text = (records / "claim.json").read_text().replace('"boot_id":"', '"boot_id":"another')
            (records / "claim.json").write_text(text)


READS = [
    ["list"],
    ["plan", "counts.yaml"],
    ["status", "counts"],
    ["status", "counts", "--json"],
    ["status", "counts", "--only", "state=failed"],
    ["why", "counts", "seed=a"],
    ["why", "counts", "seed=bad", "--json"],
    ["show", "counts", "seed=b"],
    ["logs", "counts", "seed=bad"],
    ["diff", "counts", "seed=a", "seed=b"],
    ["collect", "counts"],
]


def test_no_reading_verb_changes_anything_in_the_store(sweep: Sweep) -> None:
    (sweep.folder / "counts.yaml").write_text(COUNT)
    sweep("launch", "counts.yaml", "launcher.workers=1", code=1)
    harm(sweep.store)
    states = sorted(cell["state"] for cell in sweep.json("status", "counts")["cells"])
    assert states == ["failed", "lost", "pending", "running"]
    before, beside = photograph(sweep.store), photograph(sweep.folder)
    for words in READS:
        said = sweep(*words, code=None)
        assert said.strip(), words
        assert photograph(sweep.store) == before, words
    assert {path for path in photograph(sweep.folder) if "__pycache__" not in path} == set(beside)


def test_reading_a_store_that_does_not_exist_does_not_make_one(sweep: Sweep) -> None:
    (sweep.folder / "counts.yaml").write_text(COUNT)
    for words in (["plan", "counts.yaml"], ["status", "counts.yaml"], ["list"]):
        sweep(*words, code=None)
        assert not sweep.store.exists(), words


@pytest.mark.parametrize("problem", ["none", "damaged", "lost"])
def test_a_snapshot_only_reads(store: Path, problem: str) -> None:
    """The store refuses every writing operation, and nothing notices."""
    ledger, sweep = ledger_at(store), sweep_of(2)
    for cell in range(2):
        ledger.claim(instance_of(sweep, cell), 1, claim_of(owner=owner(pid=4_000_000)))
    instance = instance_of(sweep)
    make_product(ledger, instance)
    if problem == "damaged":
        (store / layout.payload(instance, 1) / "output/file.txt").unlink()
    if problem == "lost":
        (store / layout.done(instance, 1)).unlink()

    class ReadOnly(PosixStore):
        def create(self, key: str, data: bytes) -> bool:
            raise AssertionError(key)

        def put(self, key: str, data: bytes) -> None:
            raise AssertionError(key)

        def delete(self, prefix: str) -> None:
            raise AssertionError(prefix)

        def workspace(self, prefix: str) -> Path:
            raise AssertionError(prefix)

    ledger.objects = ReadOnly(store)
    reader = EvidenceReader(ledger, sweep.stages.values())
    for digest in sweep.stages:
        reader.evidence(digest)
