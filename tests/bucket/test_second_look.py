"""A reader's index of a bucket: a second look costs a few listings, and is as true as the first."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from orchestrator import Store
from orchestrator.api.events import History
from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState, open_view
from orchestrator.core.settings import RETIRING
from orchestrator.count import COUNT
from orchestrator.stage import StageSpec
from orchestrator.store import layout, looking
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.looking import indexed
from tests.bucket.buckets import Bucket, BucketSweep
from tests.store import builders
from tests.store.acts import act, facts_of

SWEEP = builders.sweep_of(
    4, {"count": COUNT, "more": StageSpec(run="m:f", reads=("seed",), after=("count",))}, name="counts"
)


@pytest.fixture
def sealed(bucket: Bucket) -> Iterator[Ledger]:
    """A bucket with a sealed sweep, and a launch of it."""
    builders.seal(bucket.url, SWEEP)
    ledger = open_ledger(bucket.url)
    view = SweepState(ledger, SWEEP, 1, sealed=True)
    ledger.add_request(
        "counts", build_request(view, "launch", list(SWEEP.cells), settings=builders.settings())
    )
    yield ledger
    ledger.objects.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seed", "looks"), [(0, 6), *(pytest.param(seed, 40, marks=pytest.mark.long) for seed in range(1, 4))]
)
def test_every_look_with_an_index_is_as_true_as_one_without(
    sealed: Ledger, bucket: Bucket, seed: int, looks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MANY", (2, 20)[seed % 2])
    rng, instances = random.Random(seed), list(SWEEP.stages.values())
    view = open_view("counts", bucket.url)
    for number in range(looks):
        for _ in range(rng.randrange(1, 5)):
            act(sealed, rng.choice(instances), rng)
        # In turn a reader that stays, and one that is started anew.
        view = view.fresh() if number % 3 else open_view("counts", bucket.url)
        assert facts_of(view) == facts_of(SweepState(Ledger(sealed.objects), SWEEP, 1, sealed=True))


@pytest.mark.parametrize("many", [1, 20])
def test_a_first_look_notices_a_product_with_a_missing_file(
    sealed: Ledger, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "MANY", many)
    instance = next(iter(SWEEP.stages.values()))
    sealed.claim(instance, 1, builders.claim())
    builders.make_product(sealed, instance)
    sealed.objects.upload(layout.output(instance, 1))
    sealed.objects.delete(f"{layout.output(instance, 1)}/file.txt")
    for _ in range(2):
        found = _indexed(sealed).reader.evidence(instance.digest)
        assert found.done is None and "file.txt is missing" in found.problem


def _requests(bucket: Bucket, *, made: bool) -> list[tuple[str, str]]:
    bucket.proxy.seen.clear()
    view = open_view("counts", bucket.url)
    states = {str(status.state) for status in view.cells.values()}
    assert states == ({"done"} if made else {"done", "pending"})
    return list(bucket.proxy.seen)


def test_a_second_look_costs_three_listings_and_one_for_each_kind_that_is_not_done(
    sealed: Ledger, bucket: Bucket
) -> None:
    instances = sorted(SWEEP.stages.values(), key=lambda instance: instance.stage)
    for instance in instances[:-1]:
        sealed.claim(instance, 1, builders.claim())
        builders.make_product(sealed, instance)
        sealed.objects.upload(layout.output(instance, 1))
        sealed.end(instance, 1, builders.end("succeeded"))
    _requests(bucket, made=False)
    second = _requests(bucket, made=False)
    listings = [path for method, path in second if method == "GET" and "list-type" in path]
    assert len(listings) == 3 + 1  # requests with submissions, void/, retired/, and the records of `more`
    assert len(second) - len(listings) <= 3  # the mark of the store
    builders.make_product(sealed, instances[-1])
    sealed.claim(instances[-1], 1, builders.claim())
    sealed.objects.upload(layout.output(instances[-1], 1))
    _requests(bucket, made=True)
    third = _requests(bucket, made=True)
    assert len(third) <= 3 + 3
    assert len([path for _, path in third if "list-type" in path]) == 3
    sealed.void(instances[0], builders.void(1, "discarded"))
    assert open_view("counts", bucket.url).cells["seed0"].state != "done"


def test_a_reader_that_writes_a_request_takes_a_number_that_is_free(sealed: Ledger) -> None:
    view = _indexed(sealed)
    assert [request.number for request in view.requests] == [1]
    for ledger in (sealed, view.ledger, sealed, view.ledger):
        ledger.add_request("counts", build_request(view, "cancel", None))
    assert [request.number for request in view.fresh().requests] == [1, 2, 3, 4, 5]


@pytest.mark.long
def test_the_events_of_a_bucket_are_listed_in_bulk_and_read_once(sealed: Ledger, bucket: Bucket) -> None:
    rng, instances = random.Random(5), list(SWEEP.stages.values())
    for _ in range(60):
        act(sealed, rng.choice(instances), rng)
    history = History(indexed(Ledger(sealed.objects)), "counts")
    found = history.all()
    expected = History(Ledger(sealed.objects), "counts").all()
    assert [event.as_json() for event in found] == [event.as_json() for event in expected]
    assert {event.kind for event in found} >= {"request", "claim", "end", "product", "void"}
    bucket.proxy.seen.clear()
    assert history.all() == found
    assert all("list-type" in path for _, path in bucket.proxy.seen)
    num_kinds = 2
    assert len(bucket.proxy.seen) <= 2 + num_kinds * (3 + len(RETIRING))


@pytest.fixture
def looked(sealed: Ledger, tmp_path: Path) -> Path:
    """The file of an index that was used."""
    for number in range(9):
        act(sealed, list(SWEEP.stages.values())[number % 3], random.Random(number))
    _facts_of_a_process(sealed)
    (path,) = (tmp_path / "cache").glob("index-*/*.sqlite")
    return path


def _indexed(ledger: Ledger) -> SweepState:
    return SweepState(indexed(Ledger(ledger.objects)), SWEEP, 1, sealed=True)


def _facts_of_a_process(ledger: Ledger) -> dict[str, Any]:
    """What a process finds that ends after it, and so leaves no file open."""
    view = _indexed(ledger)
    found = facts_of(view)
    view.ledger.objects.index.close()  # type: ignore[attr-defined]
    return found


def _num_records(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (number,) = connection.execute("select count(*) from records").fetchone()
    return int(number)


def test_an_index_that_is_damaged_or_deleted_is_made_again(looked: Path, sealed: Ledger) -> None:
    expected, number = _facts_of_a_process(sealed), _num_records(looked)
    data = looked.read_bytes()
    middle = data[:4096] + b"\xff" * 8192 + data[12288:]
    for damaged in (b"", b"no database", data[: len(data) // 2], middle):
        looked.write_bytes(damaged)
        assert _facts_of_a_process(sealed) == expected
        assert _num_records(looked) == number
    shutil.rmtree(looked.parent)
    assert _facts_of_a_process(sealed) == expected
    assert _num_records(looked) == number
    assert looked.parent.stat().st_mode & 0o077 == 0
    shutil.rmtree(looked.parent)
    looked.parent.write_text("no folder")  # no place for an index: everything is read from the store
    assert _facts_of_a_process(sealed) == expected


@pytest.mark.long
def test_ten_readers_share_an_index(looked: Path, bucket: Bucket, tmp_path: Path) -> None:
    looked.unlink()
    (tmp_path / "project").mkdir()
    sweep = BucketSweep(tmp_path / "project", bucket)

    def read(_: int) -> dict[str, Any]:
        words = [sys.executable, "-m", "orchestrator", "status", "counts", "--json"]
        done = subprocess.run(
            words, env=sweep.env, cwd=sweep.folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        found: dict[str, Any] = json.loads(done.stdout)
        assert time.time() - 60 < found.pop("as_of") < time.time()
        return found

    with ThreadPoolExecutor(10) as pool:
        first, *others = pool.map(read, range(10))
    assert all(found == first for found in others)


def test_a_query_over_a_bucket_fetches_predictions_and_reads_metrics(sealed: Ledger, bucket: Bucket) -> None:
    pytest.importorskip("duckdb", reason="the extra `query` is not installed")
    instance = next(iter(SWEEP.stages.values()))
    sealed.claim(instance, 1, builders.claim())
    line = b'{"step": 1, "time_s": 0.5, "loss": 2.5, "note": "text"}\n'
    sealed.objects.put(layout.metrics(instance, 1), line)
    folder = sealed.objects.workspace(layout.output(instance, 1))
    table = pyarrow.table({"item": [1, 2], "correct": [True, False]})
    pyarrow.parquet.write_table(table, folder / "predictions.parquet")
    builders.make_product(sealed, instance)
    sealed.objects.upload(layout.output(instance, 1))
    sealed.end(instance, 1, builders.end("succeeded"))
    store = Store(bucket.url)
    for _ in range(2):
        found = store.query("select cell, item, correct from predictions order by item").to_pylist()
        assert found == [
            {"cell": "seed0", "item": 1, "correct": True},
            {"cell": "seed0", "item": 2, "correct": False},
        ]
        (metric,) = store.query("select * from metrics").to_pylist()
        assert (metric["metric"], metric["value"], metric["time_s"]) == ("loss", 2.5, 0.5)
    assert store.query("select value from results").to_pylist() == [{"value": 1}]
