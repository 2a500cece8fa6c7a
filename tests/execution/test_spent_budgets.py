"""A worker of a sweep whose budget is spent gives its GPUs back before it imports what stages need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.records import Request
from orchestrator.core.settings import SpendingLimit
from orchestrator.stage import StageSpec
from tests.execution.faults import order_for
from tests.store.builders import ledger_at, seal, settings, sweep_of


@pytest.mark.parametrize("gpu_hours", [0.0, 1.0])
def test_a_worker_that_may_claim_nothing_imports_nothing_for_stages(
    store: Path, tmp_path: Path, gpu_hours: float
) -> None:
    (tmp_path / "large.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w').close()\n\n\ndef fit(config, inputs, context): pass\n"
    )
    spec = StageSpec(run="large:fit", reads=("seed",), preload=("large",))
    sweep = sweep_of(1, {"fit": spec})
    seal(store, sweep)
    limited = settings(budget=SpendingLimit(gpu_hours=gpu_hours))
    request = Request(nonce="a", number=0, verb="launch", revision=1, settings=limited)
    ledger_at(store).add_request(sweep.name, request)
    order = order_for(store, sweep.name, num_gpus=8, import_paths=(str(tmp_path),))
    file = tmp_path / "order.json"
    file.write_bytes(msgspec.json.encode(order))
    words = [sys.executable, "-m", "orchestrator.execution.main", str(file)]
    said = subprocess.run(
        words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert (tmp_path / "imported").exists() is (gpu_hours > 0)
    assert ("this worker claims no more" in said) is (gpu_hours == 0)
