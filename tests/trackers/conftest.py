"""The sweep that the mirrors show."""

from __future__ import annotations

from typing import Any

import pytest

TWO = """
description: two cells that count
config: {seed: 0, count: {num_steps: 8, checkpoint_every: 3, step_s: 0.01, fail: null}}
axes: {seed: "range(0,2)"}
stages: [count]
"""


@pytest.fixture
def two(sweep: Any) -> Any:
    """The command, with a sweep of two cells in ``two.yaml``."""
    (sweep.folder / "two.yaml").write_text(TWO)
    return sweep
