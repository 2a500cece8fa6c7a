"""Segments of trainings: which are kept, that they stay, and that they give the same bits again."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import msgspec
import pytest

from orchestrator.api.state import open_view
from orchestrator.bundles.making import BundleOptions, make_bundle
from orchestrator.bundles.verifying import VerifyOptions, verify_bundle
from orchestrator.execution.audit import MAX_SEGMENT_STEPS, AuditedContext, segments_of
from orchestrator.saving import MANIFEST
from orchestrator.stage import Config
from tests.bundles import forging
from tests.bundles.conftest import Honest
from tests.conftest import Sweep

ONE = """
like: smoke
expect_cells: 1
axes: {model: [tiny-qwen3], task: [math], mixture: {en: {languages: [en]}}}
overrides: {policy.audit_segments: 2, policy.retention: best, data.num_train: 64}
report: [accuracy]
"""


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 9, 64, 1000])
def test_segments_are_random_by_the_digest_and_lie_inside_the_training(num_steps: int) -> None:
    found = segments_of("a" * 64, 3, num_steps)
    assert found == segments_of("a" * 64, 3, num_steps) == sorted(found)
    assert len(found) == min(3, max(0, num_steps - 1 - min(MAX_SEGMENT_STEPS, max(1, num_steps // 8))))
    assert all(0 < first < last < num_steps for first, last in found)
    assert all(last - first <= MAX_SEGMENT_STEPS for first, last in found)
    assert num_steps < 1000 or found != segments_of("b" * 64, 3, num_steps)


def test_the_checkpoints_of_a_segment_stay_when_others_rotate(tmp_path: Path) -> None:
    context = AuditedContext(
        tmp_path, digest="a" * 64, number=2, uses=Config({}), checkpoint_interval_s=0, num_threads=3
    )
    for step in range(1, 41):
        if context.checkpoint_due(step, num_steps=40):
            if step % 2:
                with context.checkpoint(step) as folder:
                    (folder / "state").write_text(str(step))
            else:
                context.checkpoint_later(step, lambda folder, step=step: lambda: _write(folder, step))
    context.finish_checkpoint()
    steps = sorted({step for segment in segments_of("a" * 64, 2, 40) for step in segment})
    kept = sorted(path.parent.name for path in (tmp_path / "audit").glob(f"*/{MANIFEST}"))
    assert kept == [f"{step:08d}" for step in steps]
    assert all((tmp_path / "audit" / f"{step:08d}" / "state").read_text() == str(step) for step in steps)
    facts = json.loads((tmp_path / "audit" / "segments.json").read_text())
    assert facts["num_threads"] == 3 and facts["device"] == "cpu"
    assert len(list((tmp_path / "checkpoints").glob("[0-9]*"))) == 2


def test_a_segment_that_cannot_be_kept_costs_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "audit").touch()  # no folder can be made there
    context = AuditedContext(
        tmp_path, digest="a" * 64, number=1, uses=Config({}), checkpoint_interval_s=1e9, num_threads=1
    )
    for step in range(1, 41):
        if context.checkpoint_due(step, num_steps=40):
            with context.checkpoint(step) as folder:
                (folder / "state").write_text(str(step))
    ((first, last),) = segments_of("a" * 64, 1, 40)
    saved = sorted(path.parent.name for path in (tmp_path / "checkpoints").glob(f"*/{MANIFEST}"))
    assert saved == [f"{step:08d}" for step in (first, last)]


def _write(folder: Path, step: int) -> None:
    (folder / "state").write_text(str(step))


def test_code_is_run_only_where_it_is_wanted(honest: Honest, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, honest.store)
    said = sweep("verify", str(honest.bundle), "--replay", "1", code=2)
    assert "runs the code in" in said and "--run-code" in said
    found = verify_bundle(honest.bundle, VerifyOptions(replay=2))
    assert found.ok and found.replayed == []
    assert "2 segments wanted, and the bundle holds 0" in found.unchecked


@pytest.mark.long
def test_a_segment_gives_the_same_bits_again_and_a_forged_end_does_not(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, tmp_path / "store")
    (tmp_path / "one.yaml").write_text(ONE)
    sweep("launch", "one.yaml", "launcher.workers=1", "launcher.snapshot=true", timeout_s=500)
    made = make_bundle(
        open_view("one", str(tmp_path / "store")), tmp_path / "one.zip", BundleOptions(replayable=True)
    )
    assert made.num_segments == 2
    found = verify_bundle(tmp_path / "one.zip", VerifyOptions(replay=2))
    assert found.ok and len(found.replayed) == 2, found
    files = forging.read(tmp_path / "one.zip")
    facts = json.loads(next(data for name, data in files.items() if name.endswith("segments.json")))
    ends = {f"{last:08d}" for _, last in facts["segments"]}
    for name in [n for n in files if n.endswith(".safetensors") and "/state/" in n]:
        if name.split("/audit/")[1][:8] in ends:
            data = bytearray(files[name])
            data[-random.Random(3).randrange(1, 400)] ^= 1
            files[name] = bytes(data)
            _admit(files, name)
    (tmp_path / "forged.zip").write_bytes(forging.packed(forging.followed(files)))
    assert verify_bundle(tmp_path / "forged.zip", VerifyOptions()).ok
    replayed = verify_bundle(tmp_path / "forged.zip", VerifyOptions(replay=2))
    assert len(replayed.faults) == 2 and all("give other bits: state/" in each for each in replayed.faults)


def _admit(files: dict[str, bytes], name: str) -> None:
    """Put the digest of a forged file into the manifest of its checkpoint."""
    folder, inner = name.split("/state/")
    manifest = f"{folder}/manifest.json"
    tree = msgspec.json.decode(files[manifest])
    for file in tree["files"]:
        if file["path"] == f"state/{inner}":
            file["sha256"] = hashlib.sha256(files[name]).hexdigest()
    files[manifest] = msgspec.json.encode(tree)
