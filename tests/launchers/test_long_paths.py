"""Sockets have short paths whatever TMPDIR is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

SWEEP = """
config: {seed: 0, count: {num_steps: 2, checkpoint_every: 1, step_s: 0.0, fail: null}}
axes: {seed: "range(0,1)"}
stages: [count]
"""


def test_a_launch_works_with_a_long_folder_for_temporary_files(sweep: Any, tmp_path: Path) -> None:
    long = tmp_path / ("é" * 50) / ("x" * 50)
    long.mkdir(parents=True)
    (sweep.folder / "count.yaml").write_text(SWEEP)
    sweep.env = {**os.environ, "TMPDIR": str(long), "SWEEP_STORE": str(sweep.store)}
    assert "1 done" in sweep("launch", "count.yaml")
    assert not list(long.iterdir())
