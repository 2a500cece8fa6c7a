"""Records of products that a machine keeps: a look with them is as true as one without."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.requests import build_request
from orchestrator.api.state import SweepState, open_view
from orchestrator.core.records import Done
from orchestrator.core.sweep import StageInstance
from orchestrator.count import COUNT
from orchestrator.stage import StageSpec
from orchestrator.store import evidence, kept, layout
from orchestrator.store.ledger import Ledger, open_ledger
from tests.store import builders
from tests.store.acts import act, facts_of

SWEEP = builders.sweep_of(
    4, {"count": COUNT, "more": StageSpec(run="m:f", reads=("seed",), after=("count",))}, name="counts"
)
INSTANCES = list(SWEEP.stages.values())


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ledger:
    """A folder with a launched sweep, of which records are kept at once, however few they are."""
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(evidence, "MANY", 1)
    monkeypatch.setattr(kept, "MIN_NEW", 1)
    monkeypatch.setattr(kept, "SETTLED_S", -60.0)
    return _launched(tmp_path / "store")


def _launched(place: Path) -> Ledger:
    builders.seal(place, SWEEP)
    ledger = open_ledger(str(place))
    view = SweepState(ledger, SWEEP, 1, sealed=True)
    request = build_request(view, "launch", list(SWEEP.cells), settings=builders.settings())
    ledger.add_request("counts", request)
    return ledger


def _make(ledger: Ledger, instance: StageInstance, *, attempt: int = 1, generation: int = 1) -> None:
    ledger.claim(instance, attempt, builders.claim(generation=generation))
    builders.make_product(ledger, instance, attempt=attempt, generation=generation)
    ledger.end(instance, attempt, builders.end("succeeded"))


def _look(ledger: Ledger) -> dict[str, Any]:
    """What a new process would show, after a check that it is what a look without kept records shows."""
    found = facts_of(open_view("counts", ledger.objects.url))
    assert found == facts_of(SweepState(Ledger(ledger.objects), SWEEP, 1, sealed=False))
    return found


def _files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("index-*/*.products"))


def _kept(tmp_path: Path) -> set[str]:
    (path,) = _files(tmp_path)
    return set(kept._load(path).stamps)


def _record(ledger: Ledger, instance: StageInstance, generation: int = 1) -> Path:
    return Path(ledger.objects.url, layout.done(instance, generation))


@pytest.mark.parametrize(
    ("seed", "looks"), [(0, 12), *(pytest.param(seed, 60, marks=pytest.mark.long) for seed in range(1, 4))]
)
def test_every_look_with_kept_records_is_as_true_as_one_without(
    sealed: Ledger, seed: int, looks: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    view = open_view("counts", sealed.objects.url)
    for number in range(looks):
        for _ in range(rng.randrange(1, 5)):
            act(sealed, rng.choice(INSTANCES), rng)
        # In turn a reader that stays, and one that is started anew.
        view = view.fresh() if number % 3 else open_view("counts", sealed.objects.url)
        assert facts_of(view) == facts_of(SweepState(Ledger(sealed.objects), SWEEP, 1, sealed=False))
    assert _kept(tmp_path)


def test_after_a_discard_a_retirement_and_a_rerun_the_next_look_is_right(
    sealed: Ledger, tmp_path: Path
) -> None:
    first, second = INSTANCES[:2]
    for instance in INSTANCES:
        _make(sealed, instance)
    _look(sealed)
    assert len(_kept(tmp_path)) == len(INSTANCES)
    sealed.void(first, builders.void(1, "discarded"))
    found = _look(sealed)
    assert found["done"][first.digest] is None and "done" not in found["cells"]["seed0"]
    _make(sealed, first, attempt=2, generation=2)
    assert _look(sealed)["done"][first.digest].generation == 2
    product = sealed.product(second, 1)[0]
    assert product is not None
    sealed.retire(second, builders.retired(product))
    (Path(sealed.objects.url, layout.output(second, 1)) / product.files[0].path).unlink()
    found = _look(sealed)
    assert found["done"][second.digest] is not None and found["retired"][second.digest]
    # A file that is missing for no recorded reason is damage, also of a product that was seen whole.
    shutil.rmtree(Path(sealed.objects.url, layout.output(first, 2)))
    assert _look(sealed)["done"][first.digest] is None


def test_no_time_of_a_folder_hides_a_record(sealed: Ledger, tmp_path: Path) -> None:
    first, second = INSTANCES[0], INSTANCES[2]
    assert first.stage == second.stage
    _make(sealed, first)
    _look(sealed)
    folder = _record(sealed, first).parent
    before = folder.stat()
    _make(sealed, second)
    # As on a clock with coarse ticks: the folder looks as it did.
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert folder.stat().st_mtime_ns == before.st_mtime_ns
    assert _look(sealed)["done"][second.digest] is not None


def test_a_record_that_was_replaced_or_edited_is_read_again(sealed: Ledger) -> None:
    first, second = INSTANCES[0], INSTANCES[2]
    for instance in (first, second):
        _make(sealed, instance)
    _look(sealed)
    path = _record(sealed, first)
    before, data = path.stat(), path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b'"seconds":1.0', b'"seconds":2.0'))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = _look(sealed)["done"][first.digest]
    assert found.seconds == 2.0 and path.stat().st_size == before.st_size
    path = _record(sealed, second)
    before = path.stat()
    time.sleep(0.02)  # longer than a tick of the kernel's clock
    with path.open("r+b") as stream:
        stream.write(b"x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):
        assert _look(sealed)["done"][second.digest] is None


class Standing:
    """A clock that stands."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s


def test_a_record_is_kept_when_it_is_old_enough_to_show_a_change(
    sealed: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "SETTLED_S", 3600.0)
    _make(sealed, INSTANCES[0])
    _look(sealed)
    assert _files(tmp_path) == []
    time.sleep(0.02)  # longer than a tick of the kernel's clock
    between_s = time.time()
    time.sleep(0.02)
    _make(sealed, INSTANCES[2])
    monkeypatch.setattr(kept, "time", Standing(between_s + 1.0))
    monkeypatch.setattr(kept, "SETTLED_S", 1.0)
    _look(sealed)
    assert _kept(tmp_path) == {layout.done(INSTANCES[0], 1)}


def test_a_record_of_a_later_version_is_kept_with_what_this_one_does_not_know(
    sealed: Ledger, tmp_path: Path
) -> None:
    for instance in INSTANCES[:3]:
        _make(sealed, instance)
    path = _record(sealed, INSTANCES[0])
    path.write_bytes(path.read_bytes()[:-1] + b',"colour":"red"}')
    assert all(_look(sealed) == _look(sealed) for _ in range(2))
    assert len(_kept(tmp_path)) == 3
    done = open_view("counts", sealed.objects.url).reader.evidence(INSTANCES[0].digest).done
    assert isinstance(done, Done) and b'"colour":"red"' in sealed.encode(done)


def test_a_kept_record_that_this_version_cannot_decode_is_read_from_the_store(
    sealed: Ledger, tmp_path: Path
) -> None:
    for instance in INSTANCES:
        _make(sealed, instance)
    expected = _look(sealed)
    (path,) = _files(tmp_path)
    known = kept._load(path)
    # As a later version could have kept it, which shares the file.
    path.unlink()
    later = {key: (stamp, b'{"format": "three"}') for key, stamp in known.stamps.items()}
    kept._write(path, kept._NOTHING, (), later)
    assert _look(sealed) == expected
    assert _kept(tmp_path) == set(known.stamps)


def test_a_file_that_is_torn_foreign_or_of_another_version_is_made_again(
    sealed: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for instance in INSTANCES:
        _make(sealed, instance)
    expected = _look(sealed)
    (path,) = _files(tmp_path)
    data, keys = path.read_bytes(), _kept(tmp_path)
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    for other in (b"", b"x", b"no index" * 99, data[: len(data) // 2], flipped, data + b"x"):
        path.write_bytes(other)
        assert _look(sealed) == expected
        assert _kept(tmp_path) == keys
    monkeypatch.setattr(kept, "VERSION", kept.VERSION + 1)
    assert _look(sealed) == expected and len(_files(tmp_path)) == 2


def test_without_a_place_for_the_file_or_room_in_it_a_look_is_right(
    sealed: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for instance in INSTANCES:
        _make(sealed, instance)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # a write fails after 64 bytes
    try:
        _look(sealed)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (folder,) = (tmp_path / "cache").iterdir()
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("SWEEP_CACHE", str(tmp_path / "file"))
    _look(sealed)


def test_a_store_that_was_made_again_under_the_same_path_has_another_file(
    sealed: Ledger, tmp_path: Path
) -> None:
    _make(sealed, INSTANCES[0])
    assert _look(sealed)["done"][INSTANCES[0].digest] is not None
    shutil.rmtree(sealed.objects.url)
    again = _launched(tmp_path / "store")
    assert _look(again)["done"][INSTANCES[0].digest] is None
    _make(again, INSTANCES[0])
    done = _look(again)["done"][INSTANCES[0].digest]
    assert done == again.product(INSTANCES[0], 1)[0] and len(_files(tmp_path)) == 2


def _watch(url: str, num_looks: int) -> list[list[str]]:
    return [
        sorted(d for d, done in facts_of(open_view("counts", url))["done"].items() if done is not None)
        for _ in range(num_looks)
    ]


def test_ten_readers_share_the_file_while_the_store_is_written(sealed: Ledger, tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(10) as pool:
        results = [pool.apply_async(_watch, (sealed.objects.url, 10)) for _ in range(10)]
        for instance in INSTANCES:
            _make(sealed, instance)
        looks = [result.get(60) for result in results]
        # Leaving the block sends SIGTERM, which a handler of this process, inherited, may catch for ever.
        pool.close()
        pool.join()
    for seen in looks:
        # Nothing that was seen goes away, and nothing is seen that was never made.
        assert all(set(a) <= set(b) <= set(SWEEP.stages) for a, b in itertools.pairwise(seen))
    assert len([d for d in _look(sealed)["done"].values() if d is not None]) == len(INSTANCES)
    assert len(_kept(tmp_path)) == len(INSTANCES)
    (path,) = _files(tmp_path)
    assert list(path.parent.iterdir()) == [path]
