"""Rule 7 over a bucket: what is let go is deleted there and here, and what needs it is told."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from orchestrator.core.evidence import Budget
from orchestrator.core.state import State, stage_status
from orchestrator.store import layout
from orchestrator.store.evidence import EvidenceReader
from tests.bucket.buckets import Bucket, BucketSweep
from tests.cli.test_clean import PARTS, SWEEP, parts
from tests.execution.faults import order_for
from tests.execution.here import work
from tests.execution.test_going_on import BEFORE, TODAY, answers
from tests.execution.test_retiring import FILES, choices, source_of
from tests.store.builders import seal


@pytest.mark.parametrize(
    "policy", [pytest.param(each, marks=() if each == "all" else pytest.mark.long) for each in FILES]
)
def test_what_no_taker_wants_is_deleted_in_the_bucket_and_in_the_cache(bucket: Bucket, policy: str) -> None:
    sweep = choices()
    revision = seal(bucket.url, sweep)
    ledger, source = bucket.ledger(), source_of(sweep)
    order = order_for(bucket.url, sweep.name, policy={"retention": policy})
    worked = work(ledger, revision, order)
    assert worked.code == 0, worked.lines
    reader = EvidenceReader(bucket.ledger("laptop"), sweep.stages.values())
    assert {stage_status(reader.evidence(d), Budget({})).state for d in sweep.stages} == {State.DONE}
    prefix = layout.output(source, 1)
    assert sorted(ledger.objects.trees([prefix])[prefix]) == list(FILES[policy])
    here = ledger.objects.folder(prefix)
    found = sorted(p.relative_to(here).as_posix() for p in here.rglob("*") if p.is_file())
    assert found == list(FILES[policy])
    work_left = ledger.objects.trees([layout.checkpoints(source, 1)])
    assert not any(work_left.values())


def test_what_an_earlier_version_kept_there_is_used_though_inputs_were_retired(bucket: Bucket) -> None:
    order = order_for(bucket.url, "answers", policy={"retention": "none"})
    assert work(bucket.ledger(), seal(bucket.url, answers(BEFORE)), order).code == 0
    today = seal(bucket.url, answers(TODAY))
    worked = work(bucket.ledger("laptop"), today, msgspec.structs.replace(order, revision=2))
    ledger, (source, node) = bucket.ledger(), today.sweep.stages.values()
    done, _ = ledger.product(node, 1)
    assert done is not None and done.rows[0]["kept"], worked.lines
    assert ledger.numbers(source) == [1] and ledger.retired(source, 1)


@pytest.mark.long
def test_clean_deletes_in_the_bucket_and_in_the_cache_what_no_revision_in_use_names(
    bucket: Bucket, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    own = BucketSweep(folder, bucket)
    (folder / "own.yaml").write_text(SWEEP)
    (folder / "parts.py").write_text(PARTS)
    own("launch", "own.yaml", "launcher.workers=1", "launcher.snapshot=true")
    (folder / "parts.py").write_text(PARTS + "\n# edited\n")
    own("launch", "own.yaml", "seed=1,2", "launcher.workers=1", "launcher.snapshot=true")
    assert parts(own.store) == ["made for 0", "made for 1", "made for 2"]
    told = own.json("clean")
    assert [stage["stage"] for stage in told["stages"]] == ["make"] and len(told["code"]) == 1
    assert own.json("clean", "--yes")["deleted"]
    assert parts(own.store) == ["made for 1", "made for 2"]
    assert len({path.name.partition(".")[0] for path in (own.store / "code").iterdir()}) == 1
    here = [path for path in bucket.folder.glob("cache/**/payload/make/*/*/output/part") if path.is_file()]
    assert sorted(path.read_text() for path in here) == ["made for 1", "made for 2"]
    told = own.json("clean")
    assert (told["stages"], told["code"]) == ([], [])
    assert {row["text"] for row in own.json("collect", "own@1") if row["stage"] == "use"} == {
        *("made for 0", "made for 1")
    }
    assert {cell["state"] for cell in own.json("status", "own@1")["cells"]} == {"done"}
