"""Decisions survive `kill -9` of launches and workers at any moment, and two launches that decide at once."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.launches import Running
from tests.cli.test_phases import FIT, TUNE

MANY = TUNE.replace("[0.1, 0.2, 0.3]", "[0.1, 0.15, 0.2, 0.25, 0.3, 0.4]").replace("expect_cells: 6\n", "")


@pytest.fixture
def many(sweep: Any) -> Any:
    (sweep.folder / "tune.yaml").write_text(MANY, encoding="utf-8")
    (sweep.folder / "fit.py").write_text(FIT.replace("BAD", "()"), encoding="utf-8")
    return sweep


def _decision(store: Path) -> dict[str, Any]:
    """The one decision, without the names of who made it and when."""
    (path,) = store.glob("sweeps/tune/decisions/1/*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return {key: value for key, value in record.items() if key not in ("nonce", "by", "at")}


@pytest.mark.long
def test_two_launches_at_once_make_one_decision(many: Any, background: Callable[..., Running]) -> None:
    both = [background("launch", "tune.yaml", "launcher.workers=1") for _ in range(2)]
    for running in both:
        code, shown = running.end()
        assert code == 0, shown
        assert "9 cells: 9 done" in shown
    assert _decision(many.store)["chosen"] == ["lr=0.2"]
    assert "0 differences" in many("decisions", "tune", "--verify")


@pytest.mark.long
@pytest.mark.parametrize("wait_s", [1.0, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0])
def test_whoever_is_killed_at_whatever_moment_the_decision_is_the_same(
    many: Any, background: Callable[..., Running], wait_s: float
) -> None:
    launch = background("launch", "tune.yaml", "launcher.workers=2")
    time.sleep(wait_s)
    launch.process.kill()
    pids = {
        json.loads(path.read_text())["owner"]["process"]["pid"]
        for path in many.store.glob("records/fit/*/*/claim.json")
    }
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert "9 cells: 9 done" in many("launch", "tune.yaml", "launcher.workers=2")
    found = _decision(many.store)
    assert found["chosen"] == ["lr=0.2"]
    assert [each["value"] for each in found["seen"]] == [
        pytest.approx(1 - (lr - 0.2) ** 2) for lr in (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    ]
    assert "0 differences" in many("decisions", "tune", "--verify")
